// Reads links from any bytes, for layouts of any size. Accepted links are within their bounds.
#include "format/link.hpp"

#include "harness.hpp"

using namespace fuzz;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  Input in(data, n_bytes);
  const uint64_t n_tensors = in.flag() ? kMostTensors : in.number(70);
  const Bytes bytes = in.rest();
  Link link;
  if (outcome_of([&] {
        link = read_link({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, n_tensors);
      }))
    return 0;
  check(link.version > 0 && link.back <= link.version, "versions are in order");
  check(link.keep >= 1 && link.keep <= kMaxDepth, "depth to keep");
  const auto n_places = static_cast<size_t>(std::popcount(link.places));
  check(n_places >= 1 && link.places < 1u << kPlaces, "places");
  check(link.numerators.size() == (1 + link.ordinals.size()) * n_places, "a numerator per place");
  check(link.numerators.size() <= bytes.size(), "no more numbers than bytes");
  for (size_t i = 0; i < link.ordinals.size(); ++i) {
    check(link.ordinals[i] < n_tensors, "tensors of the layout");
    check(i == 0 || link.ordinals[i - 1] < link.ordinals[i], "ascending");
  }
  for (const int32_t numerator : link.numerators) {
    check(std::abs(numerator) <= static_cast<int32_t>(kMaxNumerator), "magnitudes");
  }
  return 0;
}

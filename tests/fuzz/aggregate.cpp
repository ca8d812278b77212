// Aggregates payloads that may be corrupt: a refused payload leaves the mean unchanged, and the
// order of the others does not matter.
//
// [1 byte] the model, then payloads, each after its length (1 byte), repaired as in decode.cpp.
#include "cpu/aggregate.hpp"

#include "harness.hpp"

using namespace fuzz;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  Input in(data, n_bytes);
  const Layout& layout = layouts()[in.byte() % layouts().size()];
  const Memory reference = random_model(layout, 0, false);
  constexpr uint64_t kDigest = 0x0123456789abcdef;
  const auto tensors = tensors_of(layout, reference, nullptr);
  const std::vector<bool> is_signed(layout.size(), true);
  Aggregator forward(tensors, is_signed), backward(tensors, is_signed);

  const auto mean = [&](const Aggregator& aggregator, double total_weight) {
    Memory out = filled_like(reference, 3);
    std::vector<void*> addresses;
    for (Bytes& tensor : out) addresses.push_back(tensor.data());
    aggregator.result(addresses, total_weight);
    return out;
  };

  std::vector<std::pair<Bytes, double>> accepted;
  double total = 0;
  for (int n = 0; n < 4 && in.left() > 0; ++n) {
    const double weight = 1.0 + in.byte();
    Bytes payload(std::min<size_t>(in.byte(), in.left()));
    for (uint8_t& byte : payload) byte = in.byte();
    if (payload.size() >= kFixedHeaderBytes + kChecksumBytes) {
      std::memcpy(payload.data(), kMagic, sizeof kMagic);
      payload[kVersionOffset] = CurrentFormat::kVersion;
      store_le(payload.data() + kDigestOffset, kDigest);
      seal(payload);
    }
    const Memory before = total > 0 ? mean(forward, total) : Memory();
    for (int attempt = 0; attempt < 2; ++attempt) {
      const Outcome outcome = outcome_of([&] {
        forward.add(
            forward.prepare(open_payload(payload.data(), payload.size()), kDigest, weight).get());
      });
      if (!outcome) {
        accepted.emplace_back(payload, weight);
        total += weight;
        break;
      }
      if (total > 0) check(mean(forward, total) == before, "a refused payload adds nothing");
      if (outcome->code != Code::kWrongReference) break;
      store_le(payload.data() + kCheckOffset, static_cast<uint32_t>(outcome->detail));
      seal(payload);
    }
  }
  if (accepted.empty()) return 0;
  for (auto entry = accepted.rbegin(); entry != accepted.rend(); ++entry) {
    const auto& [payload, weight] = *entry;
    const Outcome outcome = outcome_of([&] {
      backward.add(
          backward.prepare(open_payload(payload.data(), payload.size()), kDigest, weight).get());
    });
    check(!outcome, "what was accepted once is accepted again");
  }
  check(mean(forward, total) == mean(backward, total), "the order does not matter");
  return 0;
}

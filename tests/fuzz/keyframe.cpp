// Decodes keyframes: [1 byte] the model, then the payload. The target repairs magic, version,
// digest and checksum. It encodes each accepted model again and compares.
#include "cpu/keyframe.hpp"

#include "harness.hpp"

using namespace fuzz;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  Input in(data, n_bytes);
  const Layout& layout = layouts()[in.byte() % layouts().size()];
  Bytes payload = in.rest();
  constexpr uint64_t kDigest = 0x0123456789abcdef;
  if (payload.size() >= 16) {
    std::memcpy(payload.data(), kKeyframeMagic, sizeof kKeyframeMagic);
    payload[3] = kKeyframeVersion;
    store_le(payload.data() + 4, kDigest);
    seal(payload);
  }
  Memory model = random_model(layout, 0, true);
  const auto decoded = [&](const Bytes& bytes, int threads, Memory* out) {
    set_num_threads(threads);
    return outcome_of([&] {
      decode_keyframe(bytes.data(), bytes.size(), kDigest, tensors_of(layout, model, out));
    });
  };
  Memory first = filled_like(model, 1);
  const Outcome outcome = decoded(payload, 1, &first);
  for (int threads = 2; threads <= 3; ++threads) {
    Memory out = filled_like(model, 1);
    check(same(decoded(payload, threads, &out), outcome),
          "any number of threads comes to the same");
    if (!outcome) check(out == first, "any number of threads recovers the same");
  }
  if (outcome) return 0;
  model = first;
  Bytes encoded;
  for (int threads = 1; threads <= 3; ++threads) {
    set_num_threads(threads);
    const Bytes made = encode_keyframe(tensors_of(layout, model, nullptr), kDigest, 52);
    if (threads > 1) check(made == encoded, "any number of threads makes the same bytes");
    encoded = made;
  }
  Memory again = filled_like(model, 2);
  check(!decoded(encoded, 1, &again) && again == model, "a keyframe is lossless");
  return 0;
}

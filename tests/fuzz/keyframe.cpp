// Decodes keyframes: [1 byte] 0, [1 byte] the model, then the payload. The target repairs magic,
// version, digest and checksum. It encodes each accepted model again and compares. With another
// first byte, byte planes alone: coded, decoded, damaged; and slices whose frequencies are well
// formed, so that all executions reach the decoder's loop.
#include "cpu/keyframe.hpp"

#include "cpu/byte_planes.hpp"
#include "entropy/interleaved_rans.hpp"
#include "format/bits.hpp"
#include "harness.hpp"
#include "numeric/keyframe.hpp"

using namespace fuzz;

namespace {

void keyframe(Input& in) {
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
  if (outcome) return;
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
}

// ---- Byte planes

// Up to a whole chunk, small more often than not.
size_t any_length(Input& in) {
  return 2 + static_cast<size_t>(in.number(kKeyframeChunkElems - 2) >> in.byte() % 16);
}

// Codes a plane of two different bytes or more, if that pays; what is coded must come back.
void code(const Bytes& plane, Bytes* slice) {
  slice->clear();
  if (std::all_of(plane.begin(), plane.end(), [&](uint8_t byte) { return byte == plane[0]; }))
    return;
  const auto made = encode_plane(plane);
  if (!made) return;
  *slice = *made;
  check(slice->size() < plane.size(), "coding pays");
  Bytes decoded(plane.size());
  check(decode_plane(*slice, decoded) && decoded == plane, "a plane comes back");
}

void honest_plane(Input& in) {
  Bytes plane(any_length(in));
  const uint8_t kind = in.byte(), base = in.byte();
  const Bytes given = in.number(3) == 0 ? in.rest() : Bytes{};
  for (size_t i = 0; i < plane.size(); ++i) {
    const uint64_t random = mix64(i + kind);
    const uint8_t small = static_cast<uint8_t>(random % (1 + kind / 2));
    plane[i] = i < given.size() ? given[i]
               : kind % 2 == 0  ? static_cast<uint8_t>(base + small)  // flat
                                : static_cast<uint8_t>(base + std::countl_zero(random | 1) * kind);
  }
  Bytes slice;
  code(plane, &slice);
  if (slice.empty()) return;
  Bytes damaged = slice, decoded(plane.size());
  damaged.resize(in.number(slice.size() - 1));
  check(!decode_plane(damaged, decoded), "a slice that ends too early");
  damaged = slice;
  damaged.resize(slice.size() + 1 + in.number(200));
  check(!decode_plane(damaged, decoded), "a slice that ends too late");
  damaged = slice;
  damaged[in.number(slice.size() - 1)] ^= static_cast<uint8_t>(1u << in.number(7));
  check(!decode_plane(damaged, decoded) || decoded != plane, "a bit is not without effect");
}

void hostile_plane(Input& in) {
  const uint32_t first = in.byte(), last = first + static_cast<uint32_t>(in.number(255 - first));
  uint32_t left = kFrequencyOne;
  std::vector<uint32_t> frequencies;
  for (uint32_t byte = first; byte < last; ++byte) {
    const auto most = std::min<uint32_t>(left, in.byte() == 0 ? kFrequencyOne : 64);
    frequencies.push_back(static_cast<uint32_t>(in.number(most)));
    left -= frequencies.back();
  }
  frequencies.push_back(left);
  if (in.byte() == 0) frequencies[in.number(last - first)] = static_cast<uint32_t>(in.number(4096));
  BitWriter out;
  out.put(first, 8);
  out.put(last, 8);
  for (const uint32_t frequency : frequencies) out.put_gamma(frequency + 1);
  Bytes slice = out.finish();
  Bytes plane(1 + in.number(3) * 1000 + (in.byte() == 0 ? 65'000 : in.byte()));
  const size_t n_lanes = std::clamp<size_t>(plane.size() / 2048, 1, 32);
  const bool likely = in.byte() != 0;  // states are large enough
  for (size_t i = 0; i < 4 * n_lanes; ++i)
    slice.push_back(static_cast<uint8_t>(in.byte() | (likely && i % 4 == 2 ? 1 : 0)));
  const Bytes words = in.rest();
  slice.insert(slice.end(), words.begin(), words.end());
  if (decode_plane(slice, plane)) code(plane, &slice);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  Input in(data, n_bytes);
  switch (in.number(2)) {
    case 0:
      keyframe(in);
      break;
    case 1:
      honest_plane(in);
      break;
    default:
      hostile_plane(in);
  }
  return 0;
}

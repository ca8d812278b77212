#include "cpu/lane_kernels.hpp"

#include "cpu/residual.hpp"

namespace resfed {
namespace {

// A step takes as long for one lane as for a whole vector.
constexpr size_t kLeastDecoded = 4, kLeastEncoded = 8;

struct LaneKernels {
  DecodeLanes* decode = nullptr;
  EncodeLanes* encode = nullptr;
};

LaneKernels lane_kernels() {
#if defined(RESFED_X86)
  static const bool has_avx512 = __builtin_cpu_supports("avx512bw");
  if (&collect_kernels() == &kCollectAvx512 && has_avx512) {
    return {decode_lanes_avx512, encode_lanes_avx512};
  }
  if (&collect_kernels() != &kCollectScalar) return {decode_lanes_avx2, encode_lanes_avx2};
#elif defined(RESFED_NEON)
  if (&collect_kernels() == &kCollectNeon) return {decode_lanes_neon, encode_lanes_neon};
#endif
  return {};
}

}  // namespace

DecodeLanes* vector_decoder(size_t n_lanes) {
  return n_lanes >= kLeastDecoded ? lane_kernels().decode : nullptr;
}
EncodeLanes* vector_encoder(size_t n_lanes) {
  return n_lanes >= kLeastEncoded ? lane_kernels().encode : nullptr;
}

}  // namespace resfed

#include "cpu/lane_kernels.hpp"

#include "cpu/residual.hpp"

namespace resfed {

#if defined(RESFED_X86)
namespace {

// A step takes as long for one lane as for sixteen.
constexpr size_t kLeastDecoded = 4, kLeastEncoded = 8;

bool uses_avx512() {
  static const bool supported = __builtin_cpu_supports("avx512bw");
  return supported && &collect_kernels() == &kCollectAvx512;
}

}  // namespace

DecodeLanes* vector_decoder(size_t n_lanes) {
  return n_lanes >= kLeastDecoded && uses_avx512() ? decode_lanes_avx512 : nullptr;
}
EncodeLanes* vector_encoder(size_t n_lanes) {
  return n_lanes >= kLeastEncoded && uses_avx512() ? encode_lanes_avx512 : nullptr;
}
#else
DecodeLanes* vector_decoder(size_t) { return nullptr; }
EncodeLanes* vector_encoder(size_t) { return nullptr; }
#endif

}  // namespace resfed

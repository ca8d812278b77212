#include "cpu/lane_kernels.hpp"

#include "cpu/residual.hpp"

namespace resfed {
namespace {

bool uses_avx512() {
#if defined(RESFED_X86)
  static const bool supported = __builtin_cpu_supports("avx512bw");
  return supported && &collect_kernels() == &kCollectAvx512;
#else
  return false;
#endif
}

}  // namespace

#if defined(RESFED_X86)
DecodeLanes* vector_decoder() { return uses_avx512() ? decode_lanes_avx512 : nullptr; }
EncodeLanes* vector_encoder() { return uses_avx512() ? encode_lanes_avx512 : nullptr; }
#else
DecodeLanes* vector_decoder() { return nullptr; }
EncodeLanes* vector_encoder() { return nullptr; }
#endif

}  // namespace resfed

// The device probe, and a proof that core/ compiles for the device: one thread codes a slice with
// the same functions that the CPU uses. The backend proper is not written yet.
#include <cuda_runtime.h>

#include "core/check.hpp"
#include "core/exact_sum.hpp"
#include "core/keyframe.hpp"
#include "core/predict.hpp"
#include "core/quantize.hpp"
#include "core/slice.hpp"
#include "cuda/probe.hpp"

namespace resfed {

namespace {
struct Sent {
  uint64_t place;
  int32_t value;
  __device__ uint64_t index() const { return place; }
  __device__ int32_t level() const { return value; }
};
}  // namespace

// Compiled, never launched: instantiates core/ for the device so that every build checks it.
__global__ void compile_core(const uint8_t* slice, size_t n_bytes, Probability* contexts,
                             Quantizer quantizer, Prediction prediction, BFloat16* out,
                             uint32_t* check, uint8_t* plane, Sent* sent) {
  DecodingCoder coder;
  if (!open_slice(slice, n_bytes, contexts, &coder)) return;
  History history;
  Nonzero nonzero{};
  uint64_t covered = 0;
  NoAbove none;
  Above<Sent> above{sent, sent, sent, code_period(coder, 0)};
  while ((above.period == 0 ? code_nonzero(coder, history, none, nonzero)
                            : code_nonzero(coder, history, above, nonzero)) &&
         !coder.finished()) {
    covered += nonzero.gap;
    *sent = {covered - 1, static_cast<int32_t>(nonzero.level)};
    above.up_to(++sent);
    const float magnitude = dequantize_magnitude(quantizer, nonzero.level);
    const uint64_t i = covered - 1;
    const BFloat16 before = predict<BFloat16>(prediction, i);
    out[i] = recover(before, nonzero.positive ? magnitude : -magnitude);
    *check += check_term(i, element_bits(before), element_bits(out[i]));
  }
  *plane = code_byte(coder, 0);
}

std::string cuda_unavailable_reason() {
  int n_devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&n_devices);
  if (status != cudaSuccess) return cudaGetErrorString(status);
  if (n_devices == 0) return "no CUDA device";
  return "this version has no CUDA backend yet";
}

}  // namespace resfed

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/float_mode.hpp"
#include "cpu/predict.hpp"
#include "cpu/threads.hpp"

namespace resfed {
namespace {

bool any_changed(const Tensor& tensor, uint64_t first, uint64_t last) {
  const auto* const current = static_cast<const uint8_t*>(tensor.current);
  const auto* const reference = static_cast<const uint8_t*>(tensor.reference);
  const size_t size = tensor.elem_bytes;
  for (uint64_t at = first; at < last; at += kBatch) {
    const size_t n = std::min<uint64_t>(kBatch, last - at);
    if (tensor.plain() && std::memcmp(current + at * size, reference + at * size, n * size) == 0) {
      continue;
    }
    float residuals[kBatch];
    residual_batch(tensor, at, n, residuals);
    const auto differs = [](float residual) { return magnitude_key(residual) != 0; };
    if (std::any_of(residuals, residuals + n, differs)) return true;
  }
  return false;
}

bool any_changed(const Tensor& tensor) {
  if (tensor.role != Role::kMatrix && tensor.role != Role::kVector) return false;
  const uint64_t n = tensor.n_elems, first = std::min<uint64_t>(kBatch, n);
  if (any_changed(tensor, 0, first)) return true;  // as of most tensors
  std::atomic<bool> found{false};
  parallel_for((n - first + kChunkElems - 1) / kChunkElems, [&](size_t s) {
    if (found.load(std::memory_order_relaxed)) return;
    const uint64_t begin = first + s * kChunkElems;
    if (any_changed(tensor, begin, std::min(begin + kChunkElems, n))) found = true;
  });
  return found;
}

}  // namespace

std::vector<bool> changed(const std::vector<Tensor>& tensors) {
  const DefaultFloatMode mode;
  std::vector<bool> result;
  result.reserve(tensors.size());
  for (const Tensor& tensor : tensors) result.push_back(any_changed(tensor));
  return result;
}

}  // namespace resfed

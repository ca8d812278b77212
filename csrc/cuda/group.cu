#include <algorithm>

#include "cpu/lossless.hpp"
#include "cuda/group.cuh"

namespace resfed::cuda {
namespace {

// A multiple of the largest type's size, as Four in residual.cu is aligned.
bool is_aligned(const void* address, size_t elem_bytes) {
  return reinterpret_cast<uintptr_t>(address) % std::min<size_t>(16, 4 * elem_bytes) == 0;
}

}  // namespace

bool writes_prediction(const Tensor& t) {
  return t.out != nullptr && (t.prediction.n_terms > 0 || t.out != t.reference);
}

DeviceGroup fill_in(const Group& group, uint32_t chunk_elems, DeviceMember* members,
                    const DeviceMember* device) {
  uint64_t n = 0, chunk = 0;
  for (const Member& member : group.members) {
    const Tensor& t = *member.tensor;
    members[n++] = {t.current,
                    t.reference,
                    t.out,
                    t.feedback,
                    t.prediction,
                    member.begin,
                    t.n_elems,
                    chunk,
                    patterns_of(t),
                    t.dtype,
                    t.plain(),
                    is_aligned(t.current, t.elem_bytes) && is_aligned(t.reference, t.elem_bytes),
                    writes_prediction(t),
                    member.ordinal};
    chunk += n_blocks_of(t.n_elems, chunk_elems);
  }
  return {device, n, group.n_elems, chunk};
}

}  // namespace resfed::cuda

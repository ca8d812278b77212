// Stage 1 on the CPU: the fused pass over model and reference. One read of both, no copy: subtract,
// scale, compare, append what is large enough.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "api.hpp"

namespace resfed {

// An element that may be sent, by its place in its segment.
struct Candidate {
  uint32_t offset;
  float residual;
};

// The lossy elements of one role, laid end to end in the order of the tensors.
struct Piece {
  const Tensor* tensor;
  uint64_t ordinal;      // among all tensors of the call
  uint64_t begin;        // index of its first element in the group
  float scale = 1.0f;    // residuals are multiplied by this ...
  float unscale = 1.0f;  // ... and values by this
};
struct Group {
  std::vector<Piece> pieces;  // none empty
  uint64_t n_elems = 0;
  uint64_t base = 0;  // index of its first element among all lossy elements of a payload
};

// The piece that holds an element of the group.
inline const Piece& piece_at(const Group& group, uint64_t element) {
  size_t low = 0, high = group.pieces.size();  // last piece that begins at or before it
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    (group.pieces[middle].begin <= element ? low : high) = middle;
  }
  return group.pieces[low];
}

// The group is worked on in segments of this many elements, whatever the number of threads.
constexpr uint64_t kSegment = 1u << 16;
inline uint64_t n_segments(const Group& group) { return (group.n_elems + kSegment - 1) / kSegment; }

// Candidates by segment, ascending within each.
using Segments = std::vector<std::vector<Candidate>>;

// Calls visit(piece, first element in the piece, count, offset in the segment) for a segment's
// parts.
template <class Visit>
void for_each_part(const Group& group, uint64_t segment, Visit visit) {
  const uint64_t begin = segment * kSegment;
  const uint64_t end = std::min(begin + kSegment, group.n_elems);
  const Piece* piece = &piece_at(group, begin);
  for (uint64_t at = begin; at < end; ++piece) {
    const uint64_t first = at - piece->begin;
    const uint64_t count = std::min(piece->tensor->n_elems - first, end - at);
    visit(*piece, first, count, static_cast<uint32_t>(at - begin));
    at += count;
  }
}

// A lossy tensor's numbers, typed, from element `first` on.
template <class T>
struct Elements {
  const Tensor& tensor;
  uint64_t first;

  T current(uint64_t i) const { return static_cast<const T*>(tensor.current)[first + i]; }
  T predicted(uint64_t i) const {
    return tensor.prediction.n_terms == 0 ? static_cast<const T*>(tensor.reference)[first + i]
                                          : predict<T>(tensor.prediction, first + i);
  }
  // What is left to send when the receiver holds `held`.
  float residual_to(uint64_t i, T held) const {
    const float r = residual(current(i), held);
    return tensor.feedback == nullptr ? r : with_feedback(r, tensor.feedback[first + i]);
  }
  float residual_at(uint64_t i) const { return residual_to(i, predicted(i)); }
};

// Calls visit(Elements<T>) for the tensor's dtype.
template <class Visit>
void with_elements(const Tensor& tensor, uint64_t first, Visit visit) {
  switch (tensor.dtype) {
    case DType::kFloat32:
      return visit(Elements<float>{tensor, first});
    case DType::kFloat16:
      return visit(Elements<Half>{tensor, first});
    case DType::kBFloat16:
      return visit(Elements<BFloat16>{tensor, first});
    case DType::kFloat64:
      return visit(Elements<double>{tensor, first});
  }
}

// Kernels: append every element whose key is at least min_key; returns how many. `out` has room for
// n. One signature per instruction set; the scalar one is always there and says what is right.
using CollectKernel = size_t (*)(const void* current, const void* reference, size_t n, float scale,
                                 uint32_t base, uint32_t min_key, Candidate* out);
struct CollectKernels {
  const char* name;
  CollectKernel by_dtype[4];
};
extern const CollectKernels kCollectScalar;
#if defined(RESFED_AVX2)
extern const CollectKernels kCollectAvx2;
#endif

// The kernels in use: the best this processor runs, or the one chosen by name. Names: "scalar",
// "avx2". Choosing an unknown or unsupported one returns false and changes nothing.
const CollectKernels& collect_kernels();
bool choose_kernels(const char* name);

// All elements with key >= min_key, each segment's passed through `refine`, which may drop some and
// runs in any order. Throws kNonFinite for the first residual that is not finite.
using Refine = std::function<void(size_t segment, std::vector<Candidate>& found)>;
Segments collect(const Group& group, uint32_t min_key, const Refine& refine);

}  // namespace resfed

// Stage 1 on the CPU: the fused pass over model and reference. One read of both, no copy: subtract,
// scale, compare, append what is large enough.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/scratch.hpp"
#include "format/groups.hpp"

namespace resfed {

// Elements that may be sent, ascending: where in their chunk, and what.
struct Candidates {
  uint16_t* offsets = nullptr;
  float* residuals = nullptr;
  size_t n = 0;

  Candidates from(size_t first) const { return {offsets + first, residuals + first, n - first}; }
};

// The group is worked on in chunks of this many elements, whatever the number of threads.
constexpr uint64_t kChunkElems = 1u << 16;  // offsets have 16 bits
inline uint64_t n_chunks(const Group& group) {
  return (group.n_elems + kChunkElems - 1) / kChunkElems;
}

// Elements of a group as they lie in memory, each in as many bytes as the widest type takes.
class ElementBits {
 public:
  ElementBits() = default;
  ElementBits(const Group& group, size_t n) {
    for (const Member& member : group.members) width_ = std::max(width_, member.tensor->elem_bytes);
    memory_.resize(n * width_);
  }
  bool empty() const { return memory_.empty(); }
  uint8_t* at(size_t i) { return memory_.data() + i * width_; }
  const uint8_t* at(size_t i) const { return memory_.data() + i * width_; }

 private:
  uint32_t width_ = 0;
  Scratch<uint8_t> memory_;
};

// Candidates by chunk.
class CandidateChunks {
 public:
  explicit CandidateChunks(size_t n_chunks) : chunks_(n_chunks) {}
  CandidateChunks(const CandidateChunks& other);
  CandidateChunks(CandidateChunks&&) = default;
  CandidateChunks& operator=(CandidateChunks&&) = default;

  size_t size() const { return chunks_.size(); }
  Candidates operator[](size_t s) const { return chunks_[s]; }
  uint64_t count() const;

  // Several threads may put at a time, each another chunk, once.
  void put(size_t s, Candidates candidates);
  // Keeps the first n of a chunk.
  void shrink(size_t s, size_t n) { chunks_[s].n = n; }

 private:
  struct Block {
    Scratch<uint16_t> offsets;
    Scratch<float> residuals;
  };
  static constexpr size_t kBlock = 1u << 15;

  std::vector<Candidates> chunks_;
  std::vector<Block> blocks_;  // what the chunks point into
  size_t left_ = 0;            // of the last block
  std::unique_ptr<std::mutex> mutex_ = std::make_unique<std::mutex>();
};

// Calls visit(member, first element in the member, count, offset in the chunk) for the
// members in a chunk.
template <class Visit>
void for_each_member(const Group& group, uint64_t chunk, Visit visit) {
  const uint64_t begin = chunk * kChunkElems;
  const uint64_t end = std::min(begin + kChunkElems, group.n_elems);
  const Member* member = &member_at(group, begin);
  for (uint64_t at = begin; at < end; ++member) {
    const uint64_t first = at - member->begin;
    const uint64_t count = std::min(member->tensor->n_elems - first, end - at);
    visit(*member, first, count, static_cast<uint32_t>(at - begin));
    at += count;
  }
}

// A lossy tensor's numbers, typed, from element `first` on.
template <class T>
struct Elements {
  const Tensor& tensor;
  uint64_t first;

  T current(uint64_t i) const { return static_cast<const T*>(tensor.current)[first + i]; }
  T predicted(uint64_t i) const { return predicted_at<T>(tensor, first + i); }
  // What is left to send when the receiver holds `held`.
  float residual_to(uint64_t i, T held) const {
    return resfed::residual_to(tensor, first + i, held);
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
    case DType::kOther:
      break;  // never lossy
  }
}

// Kernels: append every element whose difference has a key of at least min_key, which those have
// that are not finite; returns how many. The first element
// has the offset `base`. `out` has room for n + kKernelSlack, all of which may be written. One
// signature per instruction set; the scalar one is always there and defines the result.
using CollectKernel = size_t (*)(const void* current, const void* reference, size_t n, float scale,
                                 uint32_t base, uint32_t min_key, Candidates out);
constexpr size_t kKernelSlack = 16;
struct CollectKernels {
  const char* name;
  CollectKernel by_dtype[4];
};
extern const CollectKernels kCollectScalar;
#if defined(RESFED_X86)
extern const CollectKernels kCollectAvx2, kCollectAvx512;
#elif defined(RESFED_NEON)
extern const CollectKernels kCollectNeon;
#endif

// The kernels in use: the best this processor runs, or the one chosen by name. Names: "scalar",
// "avx2", "avx512", "neon". Choosing an unknown or unsupported one returns false and changes
// nothing.
const CollectKernels& collect_kernels();
bool choose_kernels(const char* name);

// All elements with key >= min_key, each chunk's passed through `refine`, which runs in any order
// and returns how many are left at the front of `found`. Throws kNonFinite for the first residual
// that is not finite. What is found is the call's own: other threads may write to the model.
using Refine = std::function<size_t(size_t chunk, Candidates found)>;
CandidateChunks collect(const Group& group, uint32_t min_key, const Refine& refine);
// The same for some of the chunks: adds to those of the group.
void collect(const Group& group, size_t first_chunk, size_t last_chunk, uint32_t min_key,
             const Refine& refine, CandidateChunks* chunks);

}  // namespace resfed

// Sizes, and who works on what: plain functions that host code and kernels share, so that they can
// be tested without either.
#pragma once

#include <cmath>

#include "entropy/slice.hpp"
#include "format/version.hpp"
#include "host_device.hpp"
#include "numeric/select.hpp"

namespace resfed::cuda {

// A tensor is read in chunks of so many elements; a chunk lies in one tensor.
constexpr uint32_t kChunkElems = 4096;
RESFED_HD uint64_t n_chunks(uint64_t n_elems) { return (n_elems + kChunkElems - 1) / kChunkElems; }

// The last of n ascending numbers that is at most `wanted`; the first is.
template <class At>
RESFED_HD uint64_t last_at_most(uint64_t n, uint64_t wanted, At at) {
  uint64_t low = 0, high = n;
  while (high - low > 1) {
    const uint64_t middle = (low + high) / 2;
    (at(middle) <= wanted ? low : high) = middle;
  }
  return low;
}

// Room for candidates: as many as lie above the estimate, three deviations more, and all of a small
// model.
inline uint64_t candidate_room(uint64_t n_elems, const SamplePlan& plan) {
  if (plan.n_samples == 0) return n_elems;
  const double most = plan.rank + 3.0 * sqrt(static_cast<double>(plan.rank));
  const double part = min_of(most / static_cast<double>(plan.n_samples), 1.0);
  return min_of(n_elems, static_cast<uint64_t>(part * static_cast<double>(n_elems)) + 131072);
}

// Slices are coded one by a warp, each in a buffer for its decisions. A buffer begins with room
// for the coder's state, and ends with room for the decisions of one more symbol.
constexpr uint64_t kDecisionBufferHead = kSliceStateBytes / sizeof(uint16_t);
// A slice has at most 1.5 times the nominal size, or all there are.
inline uint64_t longest_slice(uint64_t n_symbols, unsigned slice_log2) {
  return min_of<uint64_t>(n_symbols, 3ull << (slice_log2 - 1));
}
inline uint64_t decision_buffer_entries(uint64_t n_symbols, unsigned slice_log2,
                                        uint64_t per_symbol) {
  const uint64_t longest = longest_slice(n_symbols, slice_log2);
  constexpr size_t kMaxPerSymbol = CurrentFormat::kMaxDecisionsPerSymbol;
  return (kDecisionBufferHead + longest * per_symbol + kMaxPerSymbol + 7) / 8 * 8;
}
// As many buffers as slices, but not more memory than the model divided by this, or this much.
constexpr uint64_t kDecisionBufferShare = 50;
constexpr uint64_t kDecisionBufferBytes = uint64_t{32} << 20;
inline uint64_t n_decision_buffers(uint64_t n_slices, uint64_t entries, uint64_t model_bytes) {
  const uint64_t most = max_of(model_bytes / kDecisionBufferShare, kDecisionBufferBytes) /
                        (entries * sizeof(uint16_t));
  return max_of<uint64_t>(min_of(n_slices, most), n_slices > 0 ? 1 : 0);
}

// What slices need for each symbol: a guess, and then the most that calls found.
struct SliceNeed {
  uint64_t decisions = 12;         // of the longest slice
  uint64_t bytes_in_quarters = 5;  // of all together, but for 64 of each slice

  uint64_t room(uint64_t n_symbols, uint64_t n_slices) const {
    return n_symbols * bytes_in_quarters / 4 + 64 * n_slices;
  }
  void remember(uint64_t most_decisions, uint64_t n_bytes, uint64_t n_symbols, uint64_t n_slices,
                unsigned slice_log2) {
    if (n_symbols == 0) return;
    const uint64_t longest = longest_slice(n_symbols, slice_log2);
    decisions = max_of(decisions, (most_decisions + longest - 1) / longest);
    const uint64_t beyond = n_bytes - min_of(n_bytes, 64 * n_slices);
    bytes_in_quarters = max_of(bytes_in_quarters, (4 * beyond + n_symbols - 1) / n_symbols);
  }
};

// Hands out aligned arrays from one allocation. Without one (base 0) it counts what is needed.
class BumpAllocator {
 public:
  explicit BumpAllocator(void* base) : base_(static_cast<uint8_t*>(base)) {}
  template <class T>
  T* take(uint64_t n) {
    n_bytes_ = (n_bytes_ + 255) / 256 * 256;
    T* const part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + n_bytes_);
    n_bytes_ += n * sizeof(T);
    return part;
  }
  // What follows may share the memory that was taken after this.
  uint64_t mark() const { return n_bytes_; }
  void rewind(uint64_t mark) {
    most_ = max_of(most_, n_bytes_);
    n_bytes_ = mark;
  }
  uint64_t n_bytes() const { return max_of(most_, n_bytes_); }

 private:
  uint8_t* base_;
  uint64_t n_bytes_ = 0, most_ = 0;
};

}  // namespace resfed::cuda

// Sizes, and who works on what: plain functions that host code and kernels share, so that they can
// be tested without either.
#pragma once

#include <cmath>

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

// The first in [low, high) of ascending numbers that is at least `wanted`; high if none is.
template <class At>
RESFED_HD uint64_t first_at_least(uint64_t low, uint64_t high, uint64_t wanted, At at) {
  while (low < high) {
    const uint64_t middle = (low + high) / 2;
    if (at(middle) < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
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

// Blocks for n threads of work, so many of them in a block.
inline uint64_t n_blocks_of(uint64_t n, uint64_t per_block) {
  return (n + per_block - 1) / per_block;
}

// Words that a lane writes at most, its state included. A symbol lengthens its state by less than
// 1/11 bit more than its code length, which is rounded to 1/32: the state is at least 16 times the
// frequency. n raw bits lengthen it by n + log2(1 + 2^(n - 16)) at most, for what remains above a
// word is at least 2^(16 - n).
inline uint64_t most_words_of_lane(uint64_t n_nonzeros, uint64_t cost_in_32nds, uint64_t raw_bits) {
  return (cost_in_32nds + 2 * 4 * n_nonzeros + 34 * raw_bits) / (32 * 16) + 1 + 2;
}

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

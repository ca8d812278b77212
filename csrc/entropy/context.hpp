// Which adaptive probability codes which decision.
//
// Each nonzero of a slice is coded as gap (distance to the one before, >= 1), sign, level (>= 1).
// Nonzeros of a trained model cluster, so the contexts are what the last few nonzeros looked like:
// the size class of the last gap, a moving average of size classes ("activity"), the last sign and
// the last level. In a slice with a period, the nonzeros one period before come first (period.hpp);
// in one with blocks, the position in the block counts (block.hpp). docs/design.md has the table of
// contexts that were tried.
//
// The contexts themselves are one table, python/resfed_codec/reference/contexts.py, from which
// contexts_v1.hpp is generated.
#pragma once

#include "host_device.hpp"

namespace resfed {

// The contexts of one kind of decision: an array in C order, whose first one has the number Begin.
template <uint32_t Begin, uint32_t... Sizes>
struct ContextFamily {
  static constexpr uint32_t kBegin = Begin;
  static constexpr uint32_t kEnd = Begin + (1u * ... * Sizes);

  static constexpr uint32_t size(unsigned dimension) {
    constexpr uint32_t kSizes[] = {Sizes...};
    return kSizes[dimension];
  }
  // The number of a context. A unary code takes the one at position 0 and counts up from there.
  template <class... Index>
  RESFED_HD static constexpr uint32_t at(Index... index) {
    uint32_t number = 0;
    ((number = number * Sizes + index), ...);
    return Begin + number;
  }
  // The index into a dimension, or the last that there is.
  template <unsigned Dimension>
  RESFED_HD static uint32_t clamp(uint32_t index) {
    constexpr uint32_t kLast = size(Dimension) - 1;
    return min_of(index, kLast);
  }
};

// What the contexts depend on; reset at the start of each slice.
struct History {
  uint32_t gap_class = 0;  // floor(log2(gap)) of the last nonzero
  uint32_t activity = 0;   // moving average of min(gap_class, 15), in 1/16
  uint32_t sign = 0;       // 0 none yet, 1 negative, 2 positive
  uint32_t level = 1;

  RESFED_HD void update(uint32_t new_gap_class, uint32_t positive, uint32_t new_level) {
    gap_class = new_gap_class;
    activity = activity - (activity >> 3) + 2 * min_of(new_gap_class, 15u);
    sign = 1 + positive;
    level = new_level;
  }
  // 0 below 8, then 1, 2 and 3 from 8, 24 and 56 on: two bits for each activity / 8. Activity never
  // exceeds 240: there it falls by 30 and rises by 30 at most.
  RESFED_HD uint32_t activity_class() const {
    constexpr uint64_t kClasses = ~0ull << 14 | 0b10'10'10'10'01'01'00;
    return static_cast<uint32_t>(kClasses >> 2 * (activity >> 3)) & 3u;
  }
};

}  // namespace resfed

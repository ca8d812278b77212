// Which adaptive probability serves which decision.
//
// A slice is a run of nonzeros. Each nonzero is coded as gap (distance to the one before, >= 1),
// sign, level (>= 1); nonzeros of a trained model cluster, so the contexts are what the last few
// nonzeros looked like: the size class of the last gap, a moving average of size classes
// ("activity"), the last sign and the last level. Where a slice tells a period, what lies one
// period before comes first (above.hpp); where it tells blocks, the place in the block counts
// (block.hpp). The table of tried contexts is in docs/design.md.
#pragma once

#include "host_device.hpp"

namespace resfed {

// What the contexts remember; reset at the start of each slice.
struct History {
  uint32_t gap_class = 0;  // floor(log2(gap)) of the last nonzero
  uint32_t activity = 0;   // moving average of min(gap_class, 15), in 1/16
  uint32_t sign = 0;       // 0 none yet, 1 negative, 2 positive
  uint32_t level = 1;
};

RESFED_HD void remember(History& h, uint32_t gap_class, uint32_t positive, uint32_t level) {
  h.gap_class = gap_class;
  h.activity = h.activity - (h.activity >> 3) + 2 * min_of(gap_class, 15u);
  h.sign = 1 + positive;
  h.level = level;
}

// 0 below 8, then 1, 2 and 3 from 8, 24 and 56 on: two bits for each activity / 8. Activity never
// exceeds 240: there it falls by 30 and rises by 30 at most.
constexpr uint32_t kActivityClasses = 4;
RESFED_HD uint32_t activity_class(uint32_t activity) {
  constexpr uint64_t kClasses = ~0ull << 14 | 0b10'10'10'10'01'01'00;
  return static_cast<uint32_t>(kClasses >> 2 * (activity >> 3)) & 3u;
}

// Sizes of the context families, in the order in which they lie in the table.
constexpr uint32_t kGapUnary = 16;     // unary position of the gap class, last one shared
constexpr uint32_t kGapMantissa = 24;  // first and second bit below the leading one, by gap class
constexpr uint32_t kLevelUnary = 14;   // unary positions before the escape
constexpr uint32_t kEscapeUnary = 24;  // unary positions of the escape's size class
constexpr uint32_t kLevelClasses = 7;
constexpr uint32_t kBlockUnary = 3;    // unary positions of the gap class that know the block
constexpr uint32_t kBlockClasses = 9;  // elements left in it: 0 for all, then 1 to 8 and more

constexpr uint32_t kGapBase = 0;
constexpr uint32_t kGapMantissaBase = kGapBase + 3 * kActivityClasses * kGapUnary;
constexpr uint32_t kGapSecondBase = kGapMantissaBase + kGapMantissa;
constexpr uint32_t kSignBase = kGapSecondBase + 2 * (kGapMantissa - 1);
constexpr uint32_t kLevelBase = kSignBase + 3 * 3;
constexpr uint32_t kEscapeBase = kLevelBase + kLevelClasses * 3 * kLevelUnary;
constexpr uint32_t kRepeatBase = kEscapeBase + kEscapeUnary;
constexpr uint32_t kAgreeBase = kRepeatBase + 4 * 6 * 4;
constexpr uint32_t kLevelAboveBase = kAgreeBase + 4;
constexpr uint32_t kPeriodContext = kLevelAboveBase + kLevelClasses * kLevelUnary;
constexpr uint32_t kBlockContext = kPeriodContext + 1;
constexpr uint32_t kBlockGapBase = kBlockContext + 1;
constexpr uint32_t kSliceContexts = kBlockGapBase + kActivityClasses * kBlockClasses * kBlockUnary;

// Unary codes have a row of contexts each, in which the position counts.
RESFED_HD uint32_t gap_row(const History& h) {
  const uint32_t row = min_of(h.gap_class, 2u) * kActivityClasses + activity_class(h.activity);
  return kGapBase + row * kGapUnary;
}
RESFED_HD uint32_t next_gap_context(uint32_t context, uint32_t position) {  // that of `position`
  return context + (position < kGapUnary ? 1 : 0);
}
// `left` elements are left in the block, 0 if all of them.
RESFED_HD uint32_t block_row(const History& h, uint32_t left) {
  const uint32_t row = activity_class(h.activity) * kBlockClasses;
  return kBlockGapBase + (row + min_of(left, kBlockClasses - 1)) * kBlockUnary;
}
RESFED_HD uint32_t gap_mantissa_context(uint32_t gap_class) {
  return kGapMantissaBase + min_of(gap_class, kGapMantissa) - 1;
}
RESFED_HD uint32_t gap_second_context(uint32_t gap_class, uint32_t first) {
  return kGapSecondBase + 2 * (min_of(gap_class, kGapMantissa) - 2) + first;
}
RESFED_HD uint32_t sign_context(const History& h, uint32_t gap_class) {
  return kSignBase + h.sign * 3 + min_of(gap_class, 2u);
}
RESFED_HD uint32_t level_row(const History& h, uint32_t gap_class) {
  return kLevelBase +
         ((min_of(h.level, kLevelClasses) - 1) * 3 + min_of(gap_class, 2u)) * kLevelUnary;
}
RESFED_HD uint32_t level_above_row(uint32_t level) {
  return kLevelAboveBase + (min_of(level, kLevelClasses) - 1) * kLevelUnary;
}
RESFED_HD uint32_t escape_context(uint32_t position) {
  return kEscapeBase + min_of(position, kEscapeUnary - 1);
}

// The lossless part has its own small family: gap as above without history, then the change.
constexpr uint32_t kLosslessGapBase = 0;  // 2 (last gap was 1 or more) x unary
constexpr uint32_t kLosslessRepeatBase = kLosslessGapBase + 2 * kGapUnary;
constexpr uint32_t kLosslessSizeBase = kLosslessRepeatBase + 2;
constexpr uint32_t kLosslessContexts = kLosslessSizeBase + 64;

}  // namespace resfed

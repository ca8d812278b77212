// Which adaptive probability serves which decision.
//
// A slice is a run of nonzeros. Each nonzero is coded as gap (distance to the one before, >= 1),
// sign, level (>= 1); nonzeros of a trained model cluster, so the contexts are what the last few
// nonzeros looked like: the size class of the last gap, a moving average of size classes
// ("activity"), the last sign and the last level. The table of tried contexts is in docs/design.md.
#pragma once

#include "core/hd.hpp"

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

// 0 below 4, then 1, 2, ... from 4, 8, 16, 24, 40, 56 and 80 on: three bits for each activity / 4.
RESFED_HD uint32_t activity_class(uint32_t activity) {
  constexpr uint64_t kClasses = 07'666666'5555'4444'33'22'1'0;
  return static_cast<uint32_t>(kClasses >> 3 * min_of(activity >> 2, 20u)) & 7u;
}

// Sizes of the context families, in the order in which they lie in the table.
constexpr uint32_t kGapUnary = 16;     // unary position of the gap class, last one shared
constexpr uint32_t kGapMantissa = 24;  // first bit below the leading one, by gap class
constexpr uint32_t kLevelUnary = 14;   // unary positions before the escape
constexpr uint32_t kEscapeUnary = 24;  // unary positions of the escape's size class
constexpr uint32_t kLevelClasses = 7;

constexpr uint32_t kGapBase = 0;
constexpr uint32_t kGapMantissaBase = kGapBase + 3 * 8 * kGapUnary;
constexpr uint32_t kSignBase = kGapMantissaBase + kGapMantissa;
constexpr uint32_t kLevelBase = kSignBase + 3 * 3;
constexpr uint32_t kEscapeBase = kLevelBase + kLevelClasses * 3 * kLevelUnary;
constexpr uint32_t kSliceContexts = kEscapeBase + kEscapeUnary;

// Unary codes have a row of contexts each, in which the position counts.
RESFED_HD uint32_t gap_row(const History& h) {
  return kGapBase + (min_of(h.gap_class, 2u) * 8 + activity_class(h.activity)) * kGapUnary;
}
RESFED_HD uint32_t gap_context(uint32_t row, uint32_t position) {
  return row + min_of(position, kGapUnary - 1);
}
RESFED_HD uint32_t gap_mantissa_context(uint32_t gap_class) {
  return kGapMantissaBase + min_of(gap_class, kGapMantissa) - 1;
}
RESFED_HD uint32_t sign_context(const History& h, uint32_t gap_class) {
  return kSignBase + h.sign * 3 + min_of(gap_class, 2u);
}
RESFED_HD uint32_t level_row(const History& h, uint32_t gap_class) {
  return kLevelBase +
         ((min_of(h.level, kLevelClasses) - 1) * 3 + min_of(gap_class, 2u)) * kLevelUnary;
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

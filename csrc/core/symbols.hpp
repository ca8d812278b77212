// Numbers as binary decisions. One function serves both directions: the Coder decides.
//
// A Coder has   bool decide(uint32_t context, bool bit)   adaptive; an encoder records `bit` and
//                                                         returns it, a decoder ignores it
//               uint32_t decide_blindly(uint32_t context, uint32_t bit)
//                                                         the same without a branch, for bits that
//                                                         cannot be predicted; 0 or 1
//               uint32_t decide_number(uint32_t number, unsigned n_bits)
//                                                         all of the 2^n_bits alike;
//                                                         1 <= n_bits <= kMaxRawBits
// A decoder's numbers are bounded by construction: unary codes stop at a limit and say so.
#pragma once

#include "core/context.hpp"
#include "core/hd.hpp"
#include "core/rans.hpp"

namespace resfed {

constexpr uint32_t kMaxGapClass = 62;     // gaps below 2^63
constexpr uint32_t kMaxEscapeClass = 23;  // levels up to kMaxLevel

struct Nonzero {
  uint64_t gap;    // >= 1
  uint32_t level;  // >= 1
  bool positive;
};

// Bits of `value` below its leading one, most significant first; `size` = floor(log2(value)).
template <class Coder>
RESFED_HD uint64_t code_mantissa(Coder& coder, uint64_t value, uint32_t size, uint64_t leading) {
  uint64_t result = leading;
  while (size > 0) {
    const unsigned n_bits = min_of(size, kMaxRawBits);
    size -= n_bits;
    const auto number = static_cast<uint32_t>(value >> size) & ((1u << n_bits) - 1);
    result = result << n_bits | coder.decide_number(number, n_bits);
  }
  return result;
}

// Returns false when a unary code ran past its limit, which only a forged stream does.
template <class Coder>
RESFED_HD bool code_nonzero(Coder& coder, History& history, Nonzero& nonzero) {
  uint32_t wanted = floor_log2(nonzero.gap | 1u);
  uint32_t gap_class = 0, row = gap_row(history);
  while (coder.decide(gap_context(row, gap_class), gap_class < wanted)) {
    if (++gap_class > kMaxGapClass) return false;
  }
  uint64_t gap = 1;
  if (gap_class > 0) {
    const auto bit = static_cast<uint32_t>(nonzero.gap >> (gap_class - 1)) & 1u;
    gap = 2u | coder.decide_blindly(gap_mantissa_context(gap_class), bit);
    gap = code_mantissa(coder, nonzero.gap, gap_class - 1, gap);
  }

  const uint32_t positive =
      coder.decide_blindly(sign_context(history, gap_class), nonzero.positive ? 1 : 0);

  uint32_t level = 1;
  row = level_row(history, gap_class);
  while (level <= kLevelUnary && coder.decide(row + level - 1, level < nonzero.level)) {
    ++level;
  }
  if (level > kLevelUnary) {  // escape: Elias gamma of what is left, level - kLevelUnary >= 1
    const uint64_t rest = nonzero.level > kLevelUnary ? nonzero.level - kLevelUnary : 1;
    wanted = floor_log2(rest);
    uint32_t size = 0;
    while (coder.decide(escape_context(size), size < wanted)) {
      if (++size > kMaxEscapeClass) return false;
    }
    level = kLevelUnary + static_cast<uint32_t>(code_mantissa(coder, rest, size, 1));
  }

  nonzero = {gap, level, positive != 0};
  remember(history, gap_class, positive, level);
  return true;
}

// One changed element of the lossless part. `change` is the zigzag code of the difference modulo
// the element's width, hence never 0.
struct Change {
  uint64_t gap;
  uint64_t change;
};

struct LosslessHistory {
  bool scattered = false;  // the last gap was above 1
  bool repeated = false;   // the last change equalled the one before
  uint64_t change = 0;     // 0: none yet
};

template <class Coder>
RESFED_HD bool code_change(Coder& coder, LosslessHistory& history, Change& c) {
  const uint32_t wanted = floor_log2(c.gap | 1u);
  uint32_t gap_class = 0;
  const uint32_t base = kLosslessGapBase + (history.scattered ? kGapUnary : 0);
  while (coder.decide(base + min_of(gap_class, kGapUnary - 1), gap_class < wanted)) {
    if (++gap_class > kMaxGapClass) return false;
  }
  const uint64_t gap = code_mantissa(coder, c.gap, gap_class, 1);

  bool repeats = history.change != 0 && c.change == history.change;
  if (history.change != 0) {
    repeats = coder.decide(kLosslessRepeatBase + (history.repeated ? 1 : 0), repeats);
  }
  uint64_t change = history.change;
  if (!repeats) {  // size class as a 6-bit tree, then the bits below the leading one
    const uint32_t size = floor_log2(c.change | 1u);
    uint32_t node = 1;
    for (int bit = 5; bit >= 0; --bit) {
      node = 2 * node + (coder.decide(kLosslessSizeBase + node, (size >> bit) & 1u) ? 1 : 0);
    }
    change = code_mantissa(coder, c.change, node & 63u, 1);
  }
  c = {gap, change};
  history = {gap > 1, repeats, change};
  return true;
}

}  // namespace resfed

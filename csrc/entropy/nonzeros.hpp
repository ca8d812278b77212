// Numbers as binary decisions. One function serves both directions: the Coder tells them apart.
//
// A Coder has   bool code_bit(uint32_t context, bool bit)   adaptive; an encoder records `bit` and
//                                                         returns it, a decoder ignores it
//               uint32_t code_bit_branchless(uint32_t context, uint32_t bit)
//                                                         the same without a branch, for bits that
//                                                         cannot be predicted; 0 or 1
//               uint32_t code_bypass(uint32_t number, unsigned n_bits)
//                                                         all of the 2^n_bits alike;
//                                                         1 <= n_bits <= kMaxRawBits
// A decoder's numbers are bounded by construction: unary codes stop at a limit and say so.
#pragma once

#include "entropy/block.hpp"
#include "entropy/context.hpp"
#include "entropy/rans.hpp"
#include "host_device.hpp"

namespace resfed {

constexpr uint32_t kMaxGapClass = 62;     // gaps below 2^63
constexpr uint32_t kMaxEscapeClass = 23;  // levels up to kMaxLevel
// Of a nonzero or a change, with what a slice tells before: two unary codes of 63 and 24 at most,
// 14 decisions of a level, three mantissas, and few more.
constexpr size_t kMostDecisionsPerSymbol = 128;

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
    result = result << n_bits | coder.code_bypass(number, n_bits);
  }
  return result;
}

// The period of a slice, which comes before its nonzeros: 0 for none, below 2^32.
template <class Coder>
RESFED_HD uint64_t code_period(Coder& coder, uint64_t period) {
  if (!coder.code_bit(kPeriodContext, period != 0)) return 0;
  const uint64_t size = code_mantissa(coder, floor_log2(period | 1u), 5, 0);
  return code_mantissa(coder, period, static_cast<uint32_t>(size), 1);
}

// The blocks of a slice, which come next if it has no period.
template <class Coder>
RESFED_HD Block code_block(Coder& coder, Block block) {
  if (!coder.code_bit(kBlockContext, block.size != 0)) return {0, 0};
  const uint32_t size = coder.code_bypass((block.size - 1) % kMaxBlockSize, kBlockSizeBits) + 1;
  const uint32_t place = coder.code_bypass(block.place, floor_log2((size - 1) | 1u) + 1);
  return {size, place % size};
}

// Returns false when a unary code ran past its limit, which only a forged stream does.
template <class Coder, class RowAbove>
RESFED_HD bool code_nonzero(Coder& coder, History& history, RowAbove& above, Nonzero& nonzero) {
  uint64_t gap = above.gap();
  uint32_t gap_class = 0;
  bool repeat = false;
  if (gap != 0) {
    repeat = coder.code_bit(above.repeat_context(gap), nonzero.gap == gap);
    above.remember_repeat(repeat);
  }
  if (repeat) {
    gap_class = floor_log2(gap);
  } else {
    const uint32_t wanted = floor_log2(nonzero.gap | 1u);
    uint32_t context = above.first_context(history);
    gap = 1;
    if (coder.code_bit(context, wanted > 0)) {
      do {
        if (++gap_class > kMaxGapClass) return false;
        context = above.next_context(context, gap_class);
      } while (coder.code_bit(context, gap_class < wanted));
      const auto first = static_cast<uint32_t>(nonzero.gap >> (gap_class - 1)) & 1u;
      gap = 2u | coder.code_bit_branchless(gap_mantissa_context(gap_class), first);
      if (gap_class > 1) {
        const auto second = static_cast<uint32_t>(nonzero.gap >> (gap_class - 2)) & 1u;
        context = gap_second_context(gap_class, static_cast<uint32_t>(gap & 1u));
        gap = 2u * gap | coder.code_bit_branchless(context, second);
        gap = code_mantissa(coder, nonzero.gap, gap_class - 2, gap);
      }
    }
  }

  const int32_t level_above = above.level(gap);
  uint32_t positive = nonzero.positive ? 1 : 0, row;
  if (level_above == 0) {
    positive = coder.code_bit_branchless(sign_context(history, gap_class), positive);
    row = level_row(history, gap_class);
  } else {
    const uint32_t was_positive = level_above > 0 ? 1 : 0;
    const bool agrees = coder.code_bit(above.agree_context(), positive == was_positive);
    above.remember_agreement(agrees);
    positive = was_positive ^ (agrees ? 0 : 1);
    row = level_above_row(static_cast<uint32_t>(level_above < 0 ? -level_above : level_above));
  }

  uint32_t level = 1;
  while (level <= kLevelUnary && coder.code_bit(row + level - 1, level < nonzero.level)) {
    ++level;
  }
  if (level > kLevelUnary) {  // escape: Elias gamma of what is left, level - kLevelUnary >= 1
    const uint64_t rest = nonzero.level > kLevelUnary ? nonzero.level - kLevelUnary : 1;
    const uint32_t wanted = floor_log2(rest);
    uint32_t size = 0;
    while (coder.code_bit(escape_context(size), size < wanted)) {
      if (++size > kMaxEscapeClass) return false;
    }
    level = kLevelUnary + static_cast<uint32_t>(code_mantissa(coder, rest, size, 1));
  }

  above.follow(gap);
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
  while (coder.code_bit(base + min_of(gap_class, kGapUnary - 1), gap_class < wanted)) {
    if (++gap_class > kMaxGapClass) return false;
  }
  const uint64_t gap = code_mantissa(coder, c.gap, gap_class, 1);

  bool repeats = history.change != 0 && c.change == history.change;
  if (history.change != 0) {
    repeats = coder.code_bit(kLosslessRepeatBase + (history.repeated ? 1 : 0), repeats);
  }
  uint64_t change = history.change;
  if (!repeats) {  // size class as a 6-bit tree, then the bits below the leading one
    const uint32_t size = floor_log2(c.change | 1u);
    uint32_t node = 1;
    for (int bit = 5; bit >= 0; --bit) {
      node = 2 * node + (coder.code_bit(kLosslessSizeBase + node, (size >> bit) & 1u) ? 1 : 0);
    }
    change = code_mantissa(coder, c.change, node & 63u, 1);
  }
  c = {gap, change};
  history = {gap > 1, repeats, change};
  return true;
}

}  // namespace resfed

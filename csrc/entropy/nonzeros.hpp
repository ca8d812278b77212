// Numbers as binary decisions. One function codes both ways: the Coder is an encoder or a decoder.
//
// A Coder has   bool code_bit(uint32_t context, bool bit)   adaptive; an encoder records `bit` and
//                                                         returns it, a decoder ignores it
//               uint32_t code_bit_branchless(uint32_t context, uint32_t bit)
//                                                         the same without a branch, for bits that
//                                                         cannot be predicted; 0 or 1
//               uint32_t code_bypass(uint32_t number, unsigned n_bits)
//                                                         all of the 2^n_bits alike;
//                                                         1 <= n_bits <= kMaxRawBits
// A decoder's numbers are bounded: unary codes end at a limit, with an error.
#pragma once

#include "entropy/block.hpp"
#include "entropy/context.hpp"
#include "entropy/period.hpp"
#include "entropy/rans.hpp"
#include "host_device.hpp"

namespace resfed {

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
template <class Format, class Coder>
RESFED_HD uint64_t code_period(Coder& coder, uint64_t period) {
  if (!coder.code_bit(Format::Contexts::Period::at(), period != 0)) return 0;
  const uint64_t size = code_mantissa(coder, floor_log2(period | 1u), 5, 0);
  return code_mantissa(coder, period, static_cast<uint32_t>(size), 1);
}

// The blocks of a slice, which come next if it has no period.
template <class Format, class Coder>
RESFED_HD Block code_block(Coder& coder, Block block) {
  if (!coder.code_bit(Format::Contexts::Block::at(), block.size != 0)) return {0, 0};
  constexpr unsigned kBits = Format::kBlockSizeBits;
  const uint32_t size = coder.code_bypass((block.size - 1) % (1u << kBits), kBits) + 1;
  const uint32_t position = coder.code_bypass(block.position, floor_log2((size - 1) | 1u) + 1);
  return {size, position % size};
}

// Returns false when a unary code ran past its limit, which only a forged stream does.
template <class Coder, class Pattern>
RESFED_HD bool code_nonzero(Coder& coder, History& history, Pattern& pattern, Nonzero& nonzero) {
  using Format = typename Pattern::Format;
  using Contexts = typename Format::Contexts;
  uint64_t gap = pattern.likely_gap();
  uint32_t gap_class = 0;
  bool repeat = false;
  if (gap != 0) {
    repeat = coder.code_bit(pattern.repeat_context(gap), nonzero.gap == gap);
    pattern.update_repeats(repeat);
  }
  if (repeat) {
    gap_class = floor_log2(gap);
  } else {
    const uint32_t wanted = floor_log2(nonzero.gap | 1u);
    uint32_t context = pattern.first_gap_context(history);
    gap = 1;
    if (coder.code_bit(context, wanted > 0)) {
      do {
        if (++gap_class > Format::kMaxGapClass) return false;
        context = pattern.next_gap_context(context, gap_class);
      } while (coder.code_bit(context, gap_class < wanted));
      const auto first = static_cast<uint32_t>(nonzero.gap >> (gap_class - 1)) & 1u;
      using GapFirst = typename Contexts::GapFirst;
      context = GapFirst::at(GapFirst::template clamp<0>(gap_class - 1));
      gap = 2u | coder.code_bit_branchless(context, first);
      if (gap_class > 1) {
        const auto second = static_cast<uint32_t>(nonzero.gap >> (gap_class - 2)) & 1u;
        using GapSecond = typename Contexts::GapSecond;
        context = GapSecond::at(GapSecond::template clamp<0>(gap_class - 2),
                                static_cast<uint32_t>(gap & 1u));
        gap = 2u * gap | coder.code_bit_branchless(context, second);
        gap = code_mantissa(coder, nonzero.gap, gap_class - 2, gap);
      }
    }
  }

  const int32_t level_above = pattern.level_above(gap);
  uint32_t positive = nonzero.positive ? 1 : 0, row;
  if (level_above == 0) {
    using Sign = typename Contexts::Sign;
    using Level = typename Contexts::Level;
    const uint32_t context = Sign::at(history.sign, Sign::template clamp<1>(gap_class));
    positive = coder.code_bit_branchless(context, positive);
    row = Level::at(Level::template clamp<0>(history.level - 1),
                    Level::template clamp<1>(gap_class), 0u);
  } else {
    const uint32_t was_positive = level_above > 0 ? 1 : 0;
    const bool agrees = coder.code_bit(pattern.agree_context(), positive == was_positive);
    pattern.update_agreed(agrees);
    positive = was_positive ^ (agrees ? 0 : 1);
    using LevelAbove = typename Contexts::LevelAbove;
    const auto magnitude = static_cast<uint32_t>(level_above < 0 ? -level_above : level_above);
    row = LevelAbove::at(LevelAbove::template clamp<0>(magnitude - 1), 0u);
  }

  constexpr uint32_t kUnary = Contexts::Level::size(2);  // larger levels are escaped
  uint32_t level = 1;
  while (level <= kUnary && coder.code_bit(row + level - 1, level < nonzero.level)) {
    ++level;
  }
  if (level > kUnary) {  // Elias gamma of what is left, level - kUnary >= 1
    using Escape = typename Contexts::Escape;
    const uint64_t rest = nonzero.level > kUnary ? nonzero.level - kUnary : 1;
    const uint32_t wanted = floor_log2(rest);
    uint32_t size = 0;
    while (coder.code_bit(Escape::at(Escape::template clamp<0>(size)), size < wanted)) {
      if (++size > Format::kMaxEscapeClass) return false;
    }
    level = kUnary + static_cast<uint32_t>(code_mantissa(coder, rest, size, 1));
  }

  pattern.update_position(gap);
  nonzero = {gap, level, positive != 0};
  history.update(gap_class, positive, level);
  return true;
}

// A changed element of the lossless tensors. `change` is the zigzag code of the difference modulo
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

template <class Format, class Coder>
RESFED_HD bool code_change(Coder& coder, LosslessHistory& history, Change& c) {
  using Contexts = typename Format::Contexts;
  using Gap = typename Contexts::ChangeGap;
  const uint32_t wanted = floor_log2(c.gap | 1u);
  uint32_t gap_class = 0;
  const uint32_t row = Gap::at(history.scattered ? 1u : 0u, 0u);
  while (coder.code_bit(row + Gap::template clamp<1>(gap_class), gap_class < wanted)) {
    if (++gap_class > Format::kMaxGapClass) return false;
  }
  const uint64_t gap = code_mantissa(coder, c.gap, gap_class, 1);

  bool repeats = history.change != 0 && c.change == history.change;
  if (history.change != 0) {
    repeats = coder.code_bit(Contexts::ChangeRepeat::at(history.repeated ? 1u : 0u), repeats);
  }
  uint64_t change = history.change;
  if (!repeats) {  // size class as a 6-bit tree, then the bits below the leading one
    const uint32_t size = floor_log2(c.change | 1u);
    uint32_t node = 1;
    for (int bit = 5; bit >= 0; --bit) {
      const uint32_t context = Contexts::ChangeSize::at(node);
      node = 2 * node + (coder.code_bit(context, (size >> bit) & 1u) ? 1 : 0);
    }
    change = code_mantissa(coder, c.change, node & 63u, 1);
  }
  c = {gap, change};
  history = {gap > 1, repeats, change};
  return true;
}

}  // namespace resfed

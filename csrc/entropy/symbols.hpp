// The lossy symbols of a payload, and how a slice of them is coded in either direction.
#pragma once

#include "entropy/block.hpp"
#include "entropy/nonzeros.hpp"
#include "entropy/period.hpp"
#include "numeric/quantize.hpp"

namespace resfed {

// Lossy elements of a payload; more could not be named in a SentSymbol.
constexpr uint64_t kMaxLossyElements = 1ull << 39;

// A sent element: its index among the lossy elements, and its level with the residual's sign. In
// one word, for there are many.
class SentSymbol {
 public:
  SentSymbol() = default;
  RESFED_HD SentSymbol(uint64_t index, int32_t level)
      : packed_(index << kLevelBits | (static_cast<uint32_t>(level) & kLevelMask)) {}

  RESFED_HD uint64_t index() const { return packed_ >> kLevelBits; }
  RESFED_HD int32_t level() const {
    return static_cast<int32_t>(static_cast<uint32_t>(packed_) << kUnused) >> kUnused;
  }
  RESFED_HD void move_up(uint64_t distance) { packed_ += distance << kLevelBits; }

 private:
  static constexpr unsigned kLevelBits = 25;
  static constexpr unsigned kUnused = 32 - kLevelBits;
  static constexpr uint32_t kLevelMask = (1u << kLevelBits) - 1;
  static_assert(kMaxLevel < 1u << (kLevelBits - 1));
  static_assert(kMaxLossyElements == 1ull << (64 - kLevelBits));

  uint64_t packed_;
};

// The elements from `begin` on lie in rows of this length, and in blocks of this size; 0: no rows,
// no blocks. A list ascends and begins at 0; an empty one means that there are neither.
struct RowLength {
  uint64_t begin;
  uint64_t length;
  uint64_t block;
};

RESFED_HD RowLength row_length_at(const RowLength* rows, size_t n_rows, uint64_t index) {
  if (n_rows == 0) return {0, 0, 0};
  size_t low = 0, high = n_rows;  // the last that begins at or before it
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    (rows[middle].begin <= index ? low : high) = middle;
  }
  return rows[low];
}

// What a slice signals before its nonzeros: a period, or blocks, or neither.
struct SlicePattern {
  uint64_t period = 0;
  Block block = {0, 0};
};

// The row length where the slice's middle nonzero lies, or the blocks there, if that pays.
template <class Format>
RESFED_HD SlicePattern choose_pattern(const SentSymbol* begin, const SentSymbol* end,
                                      const RowLength* rows, size_t n_rows) {
  const uint64_t middle = begin[(end - begin) / 2].index();
  const RowLength here = row_length_at(rows, n_rows, middle);
  const uint64_t length = here.length;
  if (length >= 2 && length >> 32 == 0 && period_pays(begin, end, length)) return {length, {0, 0}};
  if (here.block < 2 || here.block > 1u << Format::kBlockSizeBits) return {};
  const uint64_t position = (middle - here.begin) % here.block;
  const uint64_t back = (middle - begin->index()) % here.block;
  const Block block = {static_cast<uint32_t>(here.block),
                       static_cast<uint32_t>((position + here.block - back) % here.block)};
  return blocks_pay(begin, end, block) ? SlicePattern{0, block} : SlicePattern{};
}

// Symbol after symbol of a slice; those before the one that is coded must stand in front of it,
// with indices from any common origin.
template <class Pattern>
struct NonzeroCode {
  Pattern pattern;
  History history;

  template <class Coder>
  RESFED_HD void encode(Coder& coder, uint64_t gap, const SentSymbol& symbol) {
    const int32_t level = symbol.level();
    Nonzero nonzero{gap, static_cast<uint32_t>(level < 0 ? -level : level), level > 0};
    pattern.advance_to(&symbol);
    code_nonzero(coder, history, pattern, nonzero);
  }
  // The symbol lies `gap` after `before`, the index + 1 of the last one; false if it is no symbol.
  template <class Coder>
  RESFED_HD bool decode(Coder& coder, uint64_t before, uint64_t n_elems, SentSymbol* symbol) {
    Nonzero nonzero{};
    pattern.advance_to(symbol);
    if (!code_nonzero(coder, history, pattern, nonzero)) return false;
    if (nonzero.level > Pattern::Format::kMaxLevel) return false;
    if (nonzero.gap > n_elems - before) return false;
    const int32_t level = static_cast<int32_t>(nonzero.level);
    const int32_t sign = static_cast<int32_t>(nonzero.positive) - 1;
    *symbol = {before + nonzero.gap - 1, (level ^ sign) - sign};
    return true;
  }
};

// Codes what comes before the symbols of a slice, of which `first` is the first, and calls
// body(code) with a code for all of them. A decoder ignores `pattern`.
template <class Format, class Coder, class Body>
RESFED_HD void with_nonzero_code(Coder& coder, const SentSymbol* first, SlicePattern pattern,
                                 Body body) {
  using Period = PeriodPattern<Format, SentSymbol>;
  using Blocks = BlockPattern<Format>;
  const uint64_t period = code_period<Format>(coder, pattern.period);
  if (period != 0) return body(NonzeroCode<Period>{Period(first, period), {}});
  const Block block = code_block<Format>(coder, pattern.block);
  if (block.size != 0) return body(NonzeroCode<Blocks>{Blocks(block), {}});
  body(NonzeroCode<NoPattern<Format>>{{}, {}});
}

}  // namespace resfed

// From nonzeros to the symbols of a lane: its blocks, symbols with their rows, and raw bits.
#pragma once

#include "entropy/interleaved_rans.hpp"
#include "entropy/lane.hpp"
#include "entropy/sent_symbol.hpp"

namespace resfed {

// Where a matrix lies among the lossy elements.
struct MatrixShape {
  uint64_t begin;
  uint64_t n_elems;
  uint64_t row_length;  // of a matrix of two dimensions; 0: of more
  uint64_t block;       // elements that tend to be sent together; 0: none. Encoders only
};

template <class Nonzero>
constexpr Part part_of = Part::kLossy;
template <>
inline constexpr Part part_of<ChangedElement> = Part::kLossless;

template <bool kBlocks, class Nonzero>
RESFED_HD auto contexts_of(Block block) {
  if constexpr (part_of<Nonzero> == Part::kLossless) {
    return ChangeContexts{};
  } else {
    LaneContexts<kBlocks> contexts;
    contexts.block = block;
    return contexts;
  }
}

template <class Nonzero>
RESFED_HD uint64_t gap_at(const Nonzero* sent, uint64_t i) {
  return sent[i].index() - (i == 0 ? ~uint64_t{0} : sent[i - 1].index());
}

// The one of n matrices, which are ascending, that has the element; null where none has.
RESFED_HD const MatrixShape* matrix_at(const MatrixShape* matrices, uint64_t n, uint64_t index) {
  uint64_t low = 0, high = n;  // the first that begins after it
  while (low < high) {
    const uint64_t middle = (low + high) / 2;
    if (matrices[middle].begin <= index) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == 0) return nullptr;
  const MatrixShape& m = matrices[low - 1];
  return index - m.begin < m.n_elems ? &m : nullptr;
}

// Whether n nonzeros follow each other directly more often inside a block than across its end.
template <class Nonzero>
RESFED_HD bool blocks_pay(const Nonzero* sent, uint64_t n, Block block) {
  const uint64_t before = sent[0].index() - block.position - 1;  // the last element of a block
  const uint64_t reciprocal = ~uint64_t{0} / block.size + 1;
  int64_t across = 0, direct = 0, across_direct = 0;
  for (uint64_t i = 1; i < n; ++i) {
    // Whether the size divides a number below 2^40 (Lemire, Kaser, Kurz, arXiv 1902.01961).
    const int64_t ended = (sent[i - 1].index() - before) * reciprocal < reciprocal ? 1 : 0;
    const uint64_t gap = sent[i].index() - sent[i - 1].index();
    const auto next = static_cast<int64_t>((gap - 2) >> 63);  // whether it is 1, without a branch
    across += ended;
    direct += next;
    across_direct += ended & next;
  }
  const int64_t inside = static_cast<int64_t>(n) - 1 - across,
                inside_direct = direct - across_direct;
  return 8 * (inside_direct * across - across_direct * inside) > inside * (across + 16);
}

// The blocks of the matrix where the middle one of a lane's n nonzeros lies, if they pay.
template <class Nonzero>
RESFED_HD Block choose_block(const Nonzero* sent, uint64_t n, const MatrixShape* matrices,
                             uint64_t n_matrices) {
  const uint64_t middle = sent[n / 2].index();
  const MatrixShape* const m = matrix_at(matrices, n_matrices, middle);
  if (m == nullptr || m->block < 2 || m->block > kMaxBlock) return {0, 0};
  const uint64_t position = (middle - m->begin) % m->block;
  const uint64_t back = (middle - sent[0].index()) % m->block;
  const Block block = {static_cast<uint32_t>(m->block),
                       static_cast<uint32_t>((position + m->block - back) % m->block)};
  return blocks_pay(sent, n, block) ? block : Block{0, 0};
}

// The shift of a lane of n nonzeros: it leaves levels of about 8 on the geometric mean.
template <class Nonzero>
RESFED_HD unsigned choose_shift(const Nonzero* sent, uint64_t n) {
  constexpr unsigned kLeft = 3;
  uint64_t any = 0;
  for (uint64_t i = 0; i < n; ++i) any |= magnitude(sent[i].level());
  if (any < 2u << kLeft) return 0;
  uint64_t sum = 0;
  for (uint64_t i = 0; i < n; ++i) sum += floor_log2(magnitude(sent[i].level()));
  const auto mean = static_cast<unsigned>(sum / n);
  return mean > kLeft ? min_of(mean - kLeft, kMostShift) : 0;
}

// Of a nonzero: symbols with their rows, as row * kSymbols + symbol, and raw bits: the place in the
// symbol's class, of a long one the first piece of it, or an escape's exponent.
// In one word, for a device keeps them.
struct alignas(8) NonzeroCode {
  uint16_t gap, level, raw_level;
  uint16_t raw_gap : 13;  // those of the longest class
  uint16_t occurs : 3;    // what is rare
};
constexpr uint8_t kGapEscapes = 1, kRawLevels = 2, kLongLevels = 4;

// What is left of a level's raw bits behind its first piece or its exponent: the lowest n_bits.
struct RestOfLevel {
  uint64_t bits;
  unsigned n_bits;
};
RESFED_HD RestOfLevel rest_of_level(uint64_t level, uint32_t symbol, unsigned shift) {
  if (symbol % kSignChanged == kLevelEscape) return {level, floor_log2(level)};
  const unsigned n_bits = level_raw_bits(symbol, shift);
  return {level - 1, n_bits - min_of(n_bits, kPieceBits)};
}

// The codes of a lane, one nonzero after the other.
template <bool kBlocks, class Nonzero>
class CodeFinder {
 public:
  RESFED_HD CodeFinder(Block block, unsigned shift)
      : contexts_(contexts_of<kBlocks, Nonzero>(block)), shift_(shift) {}

  RESFED_HD NonzeroCode next(uint64_t gap, Nonzero nonzero) {
    const GapSymbol of_gap = gap_symbol(gap);
    uint32_t symbol = of_gap.symbol;
    NonzeroCode code;
    code.gap = static_cast<uint16_t>(contexts_.gap_row() * kSymbols + symbol);
    code.raw_gap =
        static_cast<uint16_t>(symbol == kGapEscape ? of_gap.log2 : gap - gap_class(symbol).first);
    uint32_t occurs = symbol == kGapEscape ? kGapEscapes : 0;
    contexts_.add_gap(gap, of_gap.log2);

    const uint64_t level = magnitude(nonzero.level());
    code.raw_level = 0;
    symbol = static_cast<uint32_t>(level) - 1;
    if (level > 8 || shift_ > 0) {
      symbol = level_symbol(level, shift_);
      const unsigned n_bits = level_raw_bits(symbol, shift_);
      if (symbol == kLevelEscape) {
        code.raw_level = static_cast<uint16_t>(floor_log2(level));
      } else {
        code.raw_level = static_cast<uint16_t>((level - first_level(symbol, shift_)) >>
                                               (n_bits - min_of(n_bits, kPieceBits)));
      }
      occurs |=
          symbol == kLevelEscape || n_bits > kPieceBits ? kRawLevels | kLongLevels : kRawLevels;
    }
    const uint32_t sign = nonzero.level() < 0 ? kSignChanged : 0;
    symbol += sign ^ last_sign_;
    last_sign_ = sign;
    code.level = static_cast<uint16_t>(contexts_.level_row() * kSymbols + symbol);
    contexts_.add_level(symbol);
    code.occurs = static_cast<uint8_t>(occurs);
    return code;
  }

 private:
  decltype(contexts_of<kBlocks, Nonzero>({})) contexts_;
  unsigned shift_;
  uint32_t last_sign_ = 0;
};

// Calls visit(i, code) for the nonzeros of a lane.
template <bool kBlocks, class Nonzero, class Visit>
RESFED_HD void for_each_code(const Nonzero* sent, uint64_t begin, uint64_t end, Block block,
                             unsigned shift, Visit visit) {
  CodeFinder<kBlocks, Nonzero> codes(block, shift);
  for (uint64_t i = begin; i < end; ++i) visit(i, codes.next(gap_at(sent, i), sent[i]));
}

// Calls visit(piece, n_bits) for the lowest n_bits of a number, the last piece first: a decoder
// reads the first one first.
template <class Visit>
RESFED_HD void for_each_piece_backwards(uint64_t value, unsigned n_bits, Visit visit) {
  for (unsigned done = n_bits - n_bits % kPieceBits;; done -= kPieceBits) {
    const unsigned n = min_of(kPieceBits, n_bits - done), below = n_bits - done - n;
    if (n > 0) visit(static_cast<uint32_t>(value >> below) & ((1u << n) - 1), n);
    if (done == 0) break;
  }
}

}  // namespace resfed

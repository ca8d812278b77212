// Nonzeros as symbols. A nonzero is a gap (distance to the one before, >= 1) and a signed level.
// Each of both is one symbol of an alphabet of 32, and raw bits where a symbol stands for several
// values.
//
//   gap symbol     0..6: gaps 1..7; 7..30: two classes per octave, from 8 to 2^15 - 1; 31: escape
//   level symbol   low 4 bits: 0..7: magnitudes 1..8; 8..14: two classes per octave, from 8 to 95;
//                  15: escape. Bit 4: the sign is not that of the nonzero before.
//
// A lane of large levels has a shift: its symbols stand for (magnitude - 1) >> shift, plus 1, and
// the bits below are raw. An escape sends floor(log2(value)), then the bits below the leading one.
#pragma once

#include <iterator>

#include "host_device.hpp"

namespace resfed {

constexpr uint32_t kSymbols = 32;
constexpr uint32_t kGapEscape = 31, kLevelEscape = 15;
constexpr uint32_t kSignChanged = 16;
constexpr unsigned kExponentBits = 6;     // of an escaped value
constexpr unsigned kEscapedGapLog2 = 15;  // of the least gap that is escaped
constexpr uint32_t kEscapedLevel = 96;    // the least, without a shift
constexpr unsigned kEscapedLevelLog2 = 6, kMostGapLog2 = 62;
constexpr unsigned kMostShift = 57;  // a class of levels has 62 raw bits at most
constexpr unsigned kPieceBits = 16;  // raw bits are coded in pieces of this size at most

// A class of values: `first` and the 2^n_bits - 1 that follow.
struct ValueClass {
  uint32_t first;
  unsigned n_bits;
};

RESFED_HD constexpr ValueClass half_octave(uint32_t index, unsigned log2) {
  const unsigned n_bits = log2 + index / 2 - 1;
  return {(2u | (index & 1u)) << n_bits, n_bits};
}
// All but the escape.
RESFED_HD constexpr ValueClass gap_class(uint32_t symbol) {
  return symbol < 7 ? ValueClass{symbol + 1, 0} : half_octave(symbol - 7, 3);
}
RESFED_HD constexpr ValueClass level_class(uint32_t symbol) {
  return symbol < 8 ? ValueClass{symbol + 1, 0} : half_octave(symbol - 8, 3);
}

struct GapSymbol {
  uint8_t symbol;
  uint8_t log2;  // of the gap
};
RESFED_HD constexpr GapSymbol gap_symbol(uint64_t gap, unsigned log2) {
  unsigned symbol = kGapEscape;
  if (gap < 8) {
    symbol = static_cast<unsigned>(gap) - 1;
  } else if (log2 < kEscapedGapLog2) {
    symbol = 7 + 2 * (log2 - 3) + (static_cast<unsigned>(gap >> (log2 - 1)) & 1u);
  }
  return {static_cast<uint8_t>(symbol), static_cast<uint8_t>(log2)};
}
#if defined(__CUDA_ARCH__)
RESFED_HD GapSymbol gap_symbol(uint64_t gap) { return gap_symbol(gap, floor_log2(gap)); }
#else
// In a table, as which gaps are below 8 cannot be predicted.
struct GapSymbols {
  GapSymbol of[1 << 12];
  constexpr GapSymbols() : of() {
    unsigned log2 = 0;
    for (uint64_t gap = 1; gap < std::size(of); ++gap) {
      log2 += gap >> log2 > 1 ? 1 : 0;
      of[gap] = gap_symbol(gap, log2);
    }
  }
};
inline constexpr GapSymbols kGapSymbols;
RESFED_HD GapSymbol gap_symbol(uint64_t gap) {
  return gap < std::size(kGapSymbols.of) ? kGapSymbols.of[gap] : gap_symbol(gap, floor_log2(gap));
}
#endif
// A magnitude as symbols see it.
RESFED_HD constexpr uint64_t shifted_level(uint64_t level, unsigned shift) {
  return ((level - 1) >> shift) + 1;
}
RESFED_HD uint32_t level_symbol(uint64_t level, unsigned shift) {
  const uint64_t high = shifted_level(level, shift);
  if (high <= 8) return static_cast<uint32_t>(high) - 1;
  if (high >= kEscapedLevel) return kLevelEscape;
  const unsigned log2 = floor_log2(high);
  return 8 + 2 * (log2 - 3) + (static_cast<uint32_t>(high >> (log2 - 1)) & 1u);
}
// The least magnitude of a symbol, which is no escape.
RESFED_HD constexpr uint64_t first_level(uint32_t symbol, unsigned shift) {
  return (uint64_t{level_class(symbol).first - 1} << shift) + 1;
}

// How many raw bits a symbol has: those of a class, or an escape's exponent.
RESFED_HD constexpr unsigned gap_raw_bits(uint32_t symbol) {
  return symbol == kGapEscape ? kExponentBits : gap_class(symbol).n_bits;
}
RESFED_HD constexpr unsigned level_raw_bits(uint32_t symbol, unsigned shift) {
  const uint32_t level = symbol % kSignChanged;
  return level == kLevelEscape ? kExponentBits : level_class(level).n_bits + shift;
}

}  // namespace resfed

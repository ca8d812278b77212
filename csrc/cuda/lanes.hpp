// Tables and scan orders of lanes as they lie on a device. Host code and kernels share it.
#pragma once

#include "entropy/lane_symbols.hpp"
#include "format/lanes.hpp"

namespace resfed::cuda {

constexpr uint32_t kCodes = kMostRows * kSymbols;  // row * kSymbols + symbol, of any family

// Where each symbol of a table starts, by row: its frequency is the distance to the next. In front
// of a row's starts lie those of every fourth symbol: a decoder looks there first.
constexpr uint32_t kGroup = 4, kGroups = kSymbols / kGroup;
constexpr uint32_t kRowStarts = kGroups + kSymbols;
struct alignas(16) TableStarts {
  uint16_t of[kMostRows * kRowStarts + kGroups];  // behind each row zeros, for 2^12

  RESFED_HD const uint16_t* row(uint32_t number) const { return of + number * kRowStarts; }
  RESFED_HD Slots slots_of(uint32_t code) const {
    const uint16_t* const start = row(code / kSymbols) + kGroups + code % kSymbols;
    return {start[0], static_cast<uint16_t>((start[1] - start[0]) & (kFrequencyOne - 1))};
  }
  void fill(const Table& table, Family family) {
    *this = {};  // what lies behind a table's rows is undefined
    for (uint32_t r = 0; r < kRows[family]; ++r) {
      for (uint32_t s = 0; s < kSymbols; ++s) {
        of[r * kRowStarts + kGroups + s] = table.starts[r][s];
        if (s % kGroup == 0) of[r * kRowStarts + s / kGroup] = table.starts[r][s];
      }
    }
  }
};
// Of a family's rows, with the zeros behind them.
RESFED_HD constexpr uint32_t table_bytes(Family family) {
  static_assert(kRows[kBlockGaps] == kMostRows && kRows[kLevels] == kMostRows &&
                kRows[kBlockLevels] == kMostRows && kRows[kChangeGaps] == kRows[kGaps]);
  constexpr uint32_t kRowsOfGaps = kRows[kGaps], kRowsOfChangeLevels = kRows[kChangeLevels];
  const uint32_t n_rows = family == kGaps || family == kChangeGaps ? kRowsOfGaps
                          : family == kChangeLevels                ? kRowsOfChangeLevels
                                                                   : kMostRows;
  return (n_rows * kRowStarts + kGroups) * sizeof(uint16_t);
}

// The trained sets; a workspace holds them.
struct DeviceTrained {
  TableStarts starts[kFamilies][kTrainedSets];
  uint16_t costs[kFamilies][kCodes][kTrainedSets];  // code lengths in 1/32 bit
};
static_assert(sizeof(DeviceTrained::costs) == sizeof(TrainedTables::costs));

// The fitted ones of an encoder; those of families without are zeros.
struct DeviceFitted {
  TableStarts starts[kFamilies];
  uint16_t costs[kFamilies][kCodes];
};

// The tables of a payload.
struct DeviceTables {
  const DeviceTrained* trained;
  const TableStarts* fitted;  // by family; those that no lane names are undefined

  RESFED_HD const TableStarts& at(Family family, uint8_t set) const {
    return set == kFittedSet ? fitted[family] : trained->starts[family][set];
  }
};

// The scan order of a matrix: how a nonzero finds back to its element.
struct DeviceScan {
  uint64_t n_rows, n_cols;      // that are kept
  uint64_t row_length;          // of the matrix
  const uint32_t *rows, *cols;  // that are kept; null: all
  const uint8_t* flips;         // by place in a line, 1: the sign is flipped; null: none
  bool columns;                 // lines are columns

  // False where it lies outside of the matrix, which begins at `begin`.
  RESFED_HD bool undo(uint64_t begin, SentSymbol* symbol) const {
    const uint64_t place = symbol->index() - begin;
    if (place >= n_rows * n_cols) return false;
    const uint64_t length = columns ? n_rows : n_cols;
    const uint64_t line = quotient(place, length), in_line = place - line * length;
    const uint64_t row = columns ? in_line : line, col = columns ? line : in_line;
    const bool flipped = flips != nullptr && flips[in_line] != 0;
    *symbol = {begin + (rows != nullptr ? rows[row] : row) * row_length +
                   (cols != nullptr ? cols[col] : col),
               flipped ? -symbol->level() : symbol->level()};
    return true;
  }

 private:
  RESFED_HD static uint64_t quotient(uint64_t n, uint64_t d) {  // shorter where both are short
    if ((n | d) >> 32 == 0) return static_cast<uint32_t>(n) / static_cast<uint32_t>(d);
    return n / d;
  }
};

}  // namespace resfed::cuda

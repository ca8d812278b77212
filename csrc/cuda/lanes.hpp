// Tables and scan orders of lanes as they lie on a device. Host code and kernels share it.
#pragma once

#include "entropy/lane_symbols.hpp"
#include "format/lanes.hpp"

namespace resfed::cuda {

constexpr uint32_t kCodes = kMostRows * kSymbols;  // row * kSymbols + symbol, of any family

// Where each symbol of a table starts, by row: its frequency is the distance to the next.
struct alignas(64) TableStarts {
  uint16_t of[kMostRows][kSymbols];
};
static_assert(sizeof(TableStarts) == sizeof(Table::starts));

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

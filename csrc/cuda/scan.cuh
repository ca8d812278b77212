// Scan orders on the device: of all matrices of two dimensions together, as cpu/scan.cpp chooses
// them for one after the other.
//
// Lines are rows and columns. Bitmaps have a bit for each line of each matrix: its rows first, then
// its columns, both from a whole word on.
#pragma once

#include "cuda/pipeline.cuh"

namespace resfed::cuda {

struct LinePlan {
  uint64_t first_row, first_col;  // bits in the bitmap; of matrices of two dimensions
  uint64_t n_rows, n_cols;        // 0: of more dimensions, not scanned
};

// What was chosen for a matrix.
struct ScanChoice {
  uint64_t first, n;                                 // of its nonzeros
  uint64_t n_rows, n_cols;                           // that are kept
  uint64_t bits_of_all, bits_of_rows, bits_of_cols;  // of gaps; without some rows; and columns
  uint64_t votes;                                    // for columns over rows, modulo 2^64
  bool keeps_rows, keeps_cols, columns, flips;
};

constexpr unsigned kSortThreads = 256;
constexpr uint64_t kSortTile = 32 * kSortThreads;  // symbols
constexpr unsigned kMostDigitBits = 10;
RESFED_HD uint64_t n_sort_tiles(uint64_t n) { return (n + kSortTile - 1) / kSortTile; }

// Memory on the device.
struct ScanBuffers {
  MatrixShape* matrices;
  LinePlan* plans;  // one for each matrix
  uint64_t n_matrices, n_lines;
  ScanChoice* choices;
  uint32_t* occurs;           // bitmap of the lines where something is sent
  uint32_t* before;           // lines in the words before, where something is sent
  unsigned long long* agree;  // by place in a line, from the matrix's first row on
  uint8_t* flips;             // the same
  uint32_t* any_columns;
  uint32_t* histograms;    // of the sort: a count for each digit and tile
  uint32_t* digit_counts;  // and for each digit
};

struct Place {
  uint64_t quotient, remainder;
};
inline __device__ Place divide(uint64_t n, uint64_t d) {  // shorter where both are short
  if ((n | d) >> 32 == 0) {
    const auto quotient = static_cast<uint32_t>(n) / static_cast<uint32_t>(d);
    return {quotient, static_cast<uint32_t>(n) - quotient * static_cast<uint32_t>(d)};
  }
  return {n / d, n % d};
}

// Takes symbols to the transposed matrices, where lines are columns, and sorts all.
void sort_transposed(const Stage& stage, uint64_t n, const ScanBuffers& buffers, SentSymbol* sent,
                     SentSymbol* other);

// Writes n symbols, which are ascending, to `sent` in scan order. Takes the blocks away from
// matrices where they do not lie along a line any more. `other` has room for n symbols, too.
void scan_symbols(const Stage& stage, const SentSymbol* symbols, uint64_t n,
                  const ScanBuffers& buffers, SentSymbol* sent, SentSymbol* other);

}  // namespace resfed::cuda

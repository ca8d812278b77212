// The order in which nonzeros are coded, chosen for each matrix of two dimensions. docs/format.md,
// section 5.1.
//
// A matrix is scanned along lines: its rows or its columns. Rows and columns where nothing is sent
// can be left out, and signs can be flipped by their place in a line. So an update that is about an
// outer product, as of the layers of a Transformer, comes in long runs of one sign.
#pragma once

#include <span>
#include <vector>

#include "cpu/scratch.hpp"
#include "entropy/lane_symbols.hpp"
#include "format/bits.hpp"
#include "format/groups.hpp"

namespace resfed {

using SentSymbols = std::span<const SentSymbol>;  // in ascending order

using MatrixShapes = std::vector<MatrixShape>;

// `blocks` are those of all tensors of the call; none where it is empty.
MatrixShapes shapes_of(const Group& matrices, const std::vector<uint64_t>& blocks = {});

// Brings nonzeros into scan order and writes which it is. Takes the blocks away from matrices where
// they do not lie along a line any more.
void scan(std::span<SentSymbol> symbols, MatrixShapes* matrices, BitWriter* out);

struct MatrixScan {
  bool columns = false;              // lines are columns
  std::vector<uint32_t> rows, cols;  // that are kept, ascending; empty: all
  std::vector<bool> flips;           // by place in a line; empty: none
};
void write_scan(BitWriter& out, const MatrixShape& m, const MatrixScan& scan);
// Of the matrices of two dimensions.
std::vector<MatrixScan> read_scans(BitReader& in, const MatrixShapes& matrices);
// Brings nonzeros back into ascending order; false where one lies outside its matrix.
bool undo_scans(std::span<SentSymbol> symbols, const MatrixShapes& matrices,
                const std::vector<MatrixScan>& scans);

}  // namespace resfed

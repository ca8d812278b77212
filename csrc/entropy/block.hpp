// Where in its block an element lies.
//
// A block is a kernel of a convolution, or what flattening made of a channel in the rows of the
// layer behind it. Blocks are sent as a whole more often than not, so a run of nonzeros tends to
// end where one does. A slice that tells its blocks says how long they are and where in its block
// the first nonzero lies, so it needs to know neither where it begins nor any shapes.
#pragma once

#include "entropy/above.hpp"
#include "entropy/context.hpp"
#include "host_device.hpp"

namespace resfed {

constexpr unsigned kBlockSizeBits = 6;
constexpr uint32_t kMaxBlockSize = 1u << kBlockSizeBits;

// size 0: no blocks. `place` is that of the slice's first nonzero, below `size`.
struct Block {
  uint32_t size;
  uint32_t place;
};

// Elements from the next one to the end of its block, `gap` elements further on; 1 to `size`.
RESFED_HD uint32_t left_in_block(uint32_t left, uint64_t gap, uint32_t size) {
  if (gap < left) return left - static_cast<uint32_t>(gap);
  const uint64_t past = gap - left;
  if (past >> 32 == 0) return size - static_cast<uint32_t>(past) % size;  // a shorter division
  return size - static_cast<uint32_t>(past % size);
}
// The same for the element after the slice's first nonzero.
RESFED_HD uint32_t left_in_block(Block block) {
  return left_in_block(block.size - block.place, 1, block.size);
}

// For slices that tell their blocks; they have no period. The slice's first gap knows no place.
struct InBlock : NoAbove {
  Block block;
  uint32_t left = 0;  // from the element after the last nonzero to the end of its block; 0: no such
  uint32_t row = 0;   // contexts of the gap's class from position kBlockUnary on

  RESFED_HD explicit InBlock(Block b) : block(b) {}

  RESFED_HD uint32_t first_context(const History& h) {
    row = gap_row(h);
    return left == 0 ? row : block_row(h, left == block.size ? 0 : left);
  }
  RESFED_HD uint32_t next_context(uint32_t context, uint32_t position) const {
    return position == kBlockUnary ? row + position : next_gap_context(context, position);
  }
  RESFED_HD void follow(uint64_t gap) {
    left = left == 0 ? left_in_block(block) : left_in_block(left, gap, block.size);
  }
};

// Whether it pays to tell a slice's blocks: nonzeros follow each other directly more often inside a
// block than across its end.
template <class Symbol>
RESFED_HD bool runs_end_with_blocks(const Symbol* begin, const Symbol* end, Block block) {
  int64_t inside = 0, inside_direct = 0, across = 0, across_direct = 0;
  uint32_t left = left_in_block(block);
  for (const Symbol* s = begin + 1; s < end; ++s) {
    const uint64_t gap = s->index() - s[-1].index();
    const int64_t direct = gap == 1 ? 1 : 0;
    if (left == block.size) {
      ++across;
      across_direct += direct;
    } else {
      ++inside;
      inside_direct += direct;
    }
    left = left_in_block(left, gap, block.size);
  }
  return 8 * (inside_direct * across - across_direct * inside) > inside * (across + 64);
}

}  // namespace resfed

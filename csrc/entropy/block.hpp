// Contexts of slices with blocks.
//
// A block is a kernel of a convolution, or what flattening made of a channel in the rows of the
// layer behind it. Blocks are sent as a whole more often than not, so consecutive nonzeros tend to
// end where a block does. A slice signals the size of its blocks and the position of its first
// nonzero in its block, so a decoder needs neither where the slice begins nor any shapes.
#pragma once

#include "entropy/context.hpp"
#include "entropy/period.hpp"
#include "host_device.hpp"

namespace resfed {

// size 0: no blocks. `position` is that of the slice's first nonzero, below `size`.
struct Block {
  uint32_t size;
  uint32_t position;
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
  return left_in_block(block.size - block.position, 1, block.size);
}

// The slice's first gap has no position in a block.
template <class F>
struct BlockPattern : NoPattern<F> {
  using BlockGap = typename F::Contexts::BlockGap;
  static constexpr uint32_t kPositions = BlockGap::size(2);  // of the unary code, with the block

  Block block;
  uint32_t left = 0;  // from the element after the last nonzero to the end of its block; 0: no such
  uint32_t plain_context = 0;  // of the gap's size class, from position kPositions on

  RESFED_HD explicit BlockPattern(Block b) : block(b) {}

  RESFED_HD uint32_t first_gap_context(const History& h) {
    plain_context = NoPattern<F>::first_gap_context(h);
    if (left == 0) return plain_context;
    const uint32_t left_class = left == block.size ? 0 : BlockGap::template clamp<1>(left);
    return BlockGap::at(h.activity_class(), left_class, 0u);
  }
  RESFED_HD uint32_t next_gap_context(uint32_t context, uint32_t position) const {
    return position == kPositions ? plain_context + position
                                  : NoPattern<F>::next_gap_context(context, position);
  }
  RESFED_HD void update_position(uint64_t gap) {
    left = left == 0 ? left_in_block(block) : left_in_block(left, gap, block.size);
  }
};

// Whether an encoder signals these blocks for a slice: if nonzeros follow each other directly more
// often inside a block than across its end.
template <class Symbol>
RESFED_HD bool blocks_pay(const Symbol* begin, const Symbol* end, Block block) {
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

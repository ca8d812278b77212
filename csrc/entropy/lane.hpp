// Which row of a table codes which symbol: the contexts of a lane.
//
// A lane is a run of nonzeros whose contexts start anew. Contexts are what its last nonzeros looked
// like: moving averages of the logarithms of gaps ("activity"), of levels and of changes of the
// sign, and the last gap. In a lane with blocks, they are also where the block ends and how much of
// it was sent. A block is a kernel of a convolution, or what flattening made of a channel in the
// rows of the layer behind it. Blocks are sent as a whole more often than not, so nonzeros tend to
// end where a block does.
#pragma once

#include "entropy/alphabet.hpp"
#include "host_device.hpp"

namespace resfed {

constexpr uint32_t kMaxBlock = 64;

// Of a lane. size 0: no blocks. `position` is that of the lane's first nonzero, below `size`.
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
// The same for the element after the lane's first nonzero.
RESFED_HD uint32_t left_in_block(Block block) {
  return left_in_block(block.size - block.position, 1, block.size);
}

// The two parts of a payload, whose nonzeros are apart: sent elements of lossy tensors, changed
// elements of lossless ones.
enum class Part { kLossy, kLossless };

// The kinds of tables: of gaps and of levels, of lanes without and with blocks, and of changes.
enum Family : uint32_t { kGaps, kBlockGaps, kLevels, kBlockLevels, kChangeGaps, kChangeLevels };
constexpr uint32_t kFamilies = 6;
constexpr uint32_t kLossyFamilies = 4;  // the first ones
constexpr uint32_t kRows[kFamilies] = {32, 72, 72, 72, 32, 12};
constexpr uint32_t kMostRows = 72;
RESFED_HD constexpr Family gap_family(Part part, bool blocks) {
  return part == Part::kLossless ? kChangeGaps : blocks ? kBlockGaps : kGaps;
}
RESFED_HD constexpr Family level_family(Part part, bool blocks) {
  return part == Part::kLossless ? kChangeLevels : blocks ? kBlockLevels : kLevels;
}
constexpr bool has_family(Part part, Family family) {
  return (part == Part::kLossless) == (family == kChangeGaps || family == kChangeLevels);
}

// How many of the ascending thresholds a number below 256 reaches.
template <uint8_t... kThresholds>
RESFED_HD uint32_t number_class(uint32_t number) {
#if defined(__CUDA_ARCH__)  // without a table: three thresholds at a time, of ten bits each
  constexpr uint32_t kHighest = 0x20080200u, kMostWords = 9;
  constexpr uint32_t kWordsOfAll = (sizeof...(kThresholds) + 2) / 3;
  struct Words {
    uint32_t of[kWordsOfAll];
    constexpr Words() : of() {
      constexpr uint8_t all[] = {kThresholds...};
      for (uint32_t i = 0; i < 3 * kWordsOfAll; ++i) {
        of[i / 3] |= (i < sizeof...(kThresholds) ? all[i] : 511u) << 10 * (i % 3);
      }
    }
  };
  constexpr Words kWords;
  const uint32_t numbers = number * 0x00100401u + kHighest;
  uint32_t n_reached = 0;
  for (uint32_t first = 0; first < kWordsOfAll; first += kMostWords) {
    uint32_t reached = 0;
    for (uint32_t i = 0; i < kMostWords && first + i < kWordsOfAll; ++i) {
      reached |= ((numbers - kWords.of[first + i]) & kHighest) >> i;
    }
    n_reached += static_cast<uint32_t>(__popc(reached));
  }
  return n_reached;
#else
  struct Classes {
    uint8_t of[256];
    constexpr Classes() : of() {
      for (uint32_t n = 0; n < 256; ++n) {
        of[n] = static_cast<uint8_t>((0u + ... + (n >= kThresholds ? 1u : 0u)));
      }
    }
  };
  static constexpr Classes kClasses;
  return kClasses.of[number];
#endif
}

// Classes of the moving averages below.
RESFED_HD uint32_t plain_activity_class(uint32_t activity) {
  return number_class<4, 8, 16, 24, 40, 56, 72>(activity);
}
RESFED_HD uint32_t block_activity_class(uint32_t activity) {
  return number_class<8, 24, 56>(activity);
}
RESFED_HD uint32_t change_activity_class(uint32_t activity) {
  return number_class<2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64,
                      68, 72, 76, 80, 88, 96, 104, 112, 120, 128, 144>(activity);
}
RESFED_HD uint32_t level_average_class(uint32_t level) {
  return number_class<17, 18, 20, 24, 28, 32, 40, 56, 72, 96, 144>(min_of(level, 255u));
}

// About the middle of a symbol's levels.
RESFED_HD uint32_t typical_level(uint32_t symbol) {
  // From symbol 8 on 10, 13, 19, 27, 39, 55, 63, 63: in one number, as an array would lie in a
  // GPU's memory.
  constexpr uint64_t kTypical = 0x3f3f37271b130d0a;
  return symbol < 8 ? symbol + 1 : static_cast<uint32_t>(kTypical >> 8 * (symbol - 8)) & 255;
}

// Of lossy nonzeros. kBlocks: the lane may have blocks.
template <bool kBlocks>
struct LaneContexts {
  Block block{0, 0};
  uint32_t gap_log2 = 0;  // min(log2(last gap), 15)
  uint32_t activity = 0;  // moving average of gap_log2, in 1/16; at most 240
  uint32_t level = 16;    // moving average of levels, in 1/16
  uint32_t changes = 0;   // moving average of sign changes, in 1/256
  uint32_t left = 0;  // from the element after the last nonzero to the end of its block; 0: unknown
  bool crossed = false;  // the last gap ended in another block than it began in
  bool whole = false;    // all elements of the last nonzero's block were sent, up to it

  RESFED_HD uint32_t gap_row() const {
    if (kBlocks && block.size > 0) {
      const uint32_t place = left == block.size ? 0 : min_of(left, 8u);
      return (place * 4 + block_activity_class(activity)) * 2 + (whole ? 1 : 0);
    }
    return (min_of(gap_log2, 1u) * 8 + plain_activity_class(activity)) * 2 + (level >= 24 ? 1 : 0);
  }
  // With the gap's floor(log2), which callers know.
  RESFED_HD void add_gap(uint64_t gap, uint32_t log2) {
    gap_log2 = min_of(log2, 15u);
    activity = activity - (activity >> 3) + 2 * gap_log2;
    if (!kBlocks || block.size == 0) return;
    crossed = left != 0 && (left == block.size || gap > left);
    const bool first = left == 0;
    left = first ? left_in_block(block) : left_in_block(left, gap, block.size);
    whole = first || crossed ? left == block.size - 1 : whole && gap == 1;
  }
  RESFED_HD uint32_t level_row() const {
    const bool apart = kBlocks && block.size > 0 ? crossed : gap_log2 > 0;
    return ((apart ? 12 : 0) + level_average_class(level)) * 3 + (changes >= 8 ? 1 : 0) +
           (changes >= 80 ? 1 : 0);
  }
  RESFED_HD void add_level(uint32_t symbol) {
    level = level - (level >> 1) + (typical_level(symbol % kSignChanged) << 3);
    changes = changes - (changes >> 3) + (symbol >= kSignChanged ? 32 : 0);
  }
};

// Of changes. Sparsity varies from place to place in a tensor, so what LaneContexts know is about
// the last few nonzeros. Changes of floats lie in the order of exponents, where nothing varies
// fast. So these averages are of about 32 of them, of fewer at first.
struct ChangeContexts {
  uint32_t n_changes = 0;  // at most 32
  int32_t activity = 0;    // moving average of min(log2(gap), 15), in 1/512
  int32_t level = 512;     // moving average of levels, in 1/512

  RESFED_HD uint32_t gap_row() const {
    return change_activity_class(static_cast<uint32_t>(activity >> 5));
  }
  RESFED_HD void add_gap(uint64_t, uint32_t log2) {
    n_changes += n_changes < 32 ? 1 : 0;
    move(&activity, min_of(log2, 15u));
  }
  RESFED_HD uint32_t level_row() const {
    return level_average_class(static_cast<uint32_t>(level >> 5));
  }
  RESFED_HD void add_level(uint32_t symbol) { move(&level, typical_level(symbol % kSignChanged)); }

 private:
  RESFED_HD void move(int32_t* average, uint32_t value) const {
    *average += (static_cast<int32_t>(512 * value) - *average) >> max_of(floor_log2(n_changes), 1u);
  }
};

}  // namespace resfed

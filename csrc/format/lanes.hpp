// Lanes and slices of a payload's nonzeros, and what the tables say of each lane. Host code that
// every backend shares.
#pragma once

#include <array>

#include "entropy/lane.hpp"
#include "entropy/partition.hpp"
#include "entropy/tables.hpp"
#include "format/bits.hpp"

namespace resfed {

constexpr unsigned kDefaultLaneLog2 = 10;
constexpr uint32_t kLanesOfSlice = 32;  // at most
constexpr uint64_t slices_of(uint64_t n_lanes) {
  return (n_lanes + kLanesOfSlice - 1) / kLanesOfSlice;
}

// How a lane is coded: its blocks and the sets of tables.
struct Lane {
  Block block{0, 0};
  uint8_t shift = 0;  // of levels
  uint8_t gap_set = 0, level_set = 0;
};

// A lane is written as what differs from those before it, so this is what both ends remember.
struct LastLane {
  uint32_t block_size = 0;
  uint8_t shift = 0;
  uint8_t sets[kFamilies] = {kFittedSet, kFittedSet, kFittedSet,
                             kFittedSet, kFittedSet, kFittedSet};
};

// Sets that are fitted to how often each symbol occurs, where they pay; writes them.
void fit_tables(Part part, const std::array<Counts, kFamilies>& counts, FittedTables* fitted,
                BitWriter* out);

// What a lane's symbols cost under all sets, in 1/32 bit.
using SetCosts = std::array<uint32_t, kTrainedSets + 1>;
struct LaneCosts {
  SetCosts gaps, levels;
};
// Chooses the sets of lanes whose blocks and shifts are known, and writes the lanes.
void choose_sets(Part part, const std::vector<LaneCosts>& costs, const FittedTables& fitted,
                 std::vector<Lane>* lanes, BitWriter* out);

// Fitted sets and lanes, which are all that is left. Throws kBadTables.
std::vector<Lane> read_tables(Part part, BitReader& in, uint64_t n_lanes, FittedTables* fitted);

}  // namespace resfed

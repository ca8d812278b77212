#include "format/lanes.hpp"

namespace resfed {
namespace {

constexpr unsigned kBlockBits = 7, kShiftBits = 6, kSetBits = 4;
unsigned position_bits(uint32_t block_size) { return floor_log2((block_size - 1) | 1u) + 1; }

void write_set_number(BitWriter& out, uint8_t set, uint8_t* last) {
  out.put(set == *last ? 1 : 0, 1);
  if (set != *last) out.put(set - (set > *last ? 1u : 0u), kSetBits);
  *last = set;
}
uint8_t read_set_number(BitReader& in, uint8_t* last, bool fitted) {
  if (in.get(1) == 0) {
    const uint32_t number = in.get(kSetBits);
    *last = static_cast<uint8_t>(number + (number >= *last ? 1 : 0));
  }
  if (*last == kFittedSet && !fitted) throw in.bad();
  return *last;
}

void write_lane(Part part, BitWriter& out, const Lane& lane, LastLane* last) {
  const uint32_t size = lane.block.size;
  const bool same = size == last->block_size && lane.shift == last->shift;
  out.put(same ? 1 : 0, 1);
  if (!same) {
    out.put(size, kBlockBits);
    out.put(lane.shift, kShiftBits);
  }
  if (size > 0) out.put(lane.block.position, position_bits(size));
  last->block_size = size;
  last->shift = lane.shift;
  write_set_number(out, lane.gap_set, &last->sets[gap_family(part, size > 0)]);
  write_set_number(out, lane.level_set, &last->sets[level_family(part, size > 0)]);
}

Lane read_lane(Part part, BitReader& in, const FittedTables& fitted, LastLane* last) {
  Lane lane;
  if (in.get(1) == 0) {
    last->block_size = in.get(kBlockBits);
    last->shift = static_cast<uint8_t>(in.get(kShiftBits));
    if (part == Part::kLossless && last->block_size > 0) throw in.bad();
    if (last->block_size == 1 || last->block_size > kMaxBlock || last->shift > kMostShift)
      throw in.bad();
  }
  lane.block.size = last->block_size;
  lane.shift = last->shift;
  const bool blocks = lane.block.size > 0;
  if (blocks) {
    lane.block.position = in.get(position_bits(lane.block.size));
    if (lane.block.position >= lane.block.size) throw in.bad();
  }
  const Family gaps = gap_family(part, blocks), levels = level_family(part, blocks);
  lane.gap_set = read_set_number(in, &last->sets[gaps], fitted[gaps] != nullptr);
  lane.level_set = read_set_number(in, &last->sets[levels], fitted[levels] != nullptr);
  return lane;
}

// The cheapest set with what naming it costs, of equal ones the first.
uint8_t choose_set(const SetCosts& costs, bool fitted, uint8_t last) {
  uint8_t best = 0;
  uint32_t least = ~0u;
  for (uint8_t set = 0; set < kTrainedSets + (fitted ? 1 : 0); ++set) {
    const uint32_t cost = costs[set] + 32 * (set == last ? 1 : 5);
    if (cost < least) least = cost, best = set;
  }
  return best;
}

}  // namespace

void fit_tables(Part part, const std::array<Counts, kFamilies>& counts, FittedTables* fitted,
                BitWriter* out) {
  for (uint32_t f = 0; f < kFamilies; ++f) {
    const auto family = static_cast<Family>(f);
    if (!has_family(part, family)) continue;
    const std::optional<FittedSet> set = fit_set(family, counts[f]);
    write_set(*out, family, set);
    if (set) (*fitted)[f] = table_of(family, *set);
  }
}

void choose_sets(Part part, const std::vector<LaneCosts>& costs, const FittedTables& fitted,
                 std::vector<Lane>* lanes, BitWriter* out) {
  LastLane last;
  for (size_t l = 0; l < lanes->size(); ++l) {
    Lane& lane = (*lanes)[l];
    const bool blocks = lane.block.size > 0;
    const Family gaps = gap_family(part, blocks), levels = level_family(part, blocks);
    lane.gap_set = choose_set(costs[l].gaps, fitted[gaps] != nullptr, last.sets[gaps]);
    lane.level_set = choose_set(costs[l].levels, fitted[levels] != nullptr, last.sets[levels]);
    write_lane(part, *out, lane, &last);
  }
}

std::vector<Lane> read_tables(Part part, BitReader& in, uint64_t n_lanes, FittedTables* fitted) {
  for (uint32_t f = 0; f < kFamilies; ++f) {
    const auto family = static_cast<Family>(f);
    if (!has_family(part, family)) continue;
    if (const std::optional<FittedSet> set = read_set(in, family)) {
      (*fitted)[f] = table_of(family, *set);
    }
  }
  std::vector<Lane> lanes(n_lanes);
  LastLane last;
  for (Lane& lane : lanes) lane = read_lane(part, in, *fitted, &last);
  in.finish();
  return lanes;
}

}  // namespace resfed

#include "format/lanes.hpp"

namespace resfed {
namespace {

constexpr unsigned kBlockBits = 7, kSetBits = 4;
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

Lane read_lane(BitReader& in, const FittedTables& fitted, LastLane* last) {
  Lane lane;
  if (in.get(1) == 0) {
    last->block_size = in.get(kBlockBits);
    if (last->block_size == 1 || last->block_size > kMaxBlock) throw in.bad();
  }
  lane.block.size = last->block_size;
  const bool blocks = lane.block.size > 0;
  if (blocks) {
    lane.block.position = in.get(position_bits(lane.block.size));
    if (lane.block.position >= lane.block.size) throw in.bad();
  }
  const Family gaps = gap_family(blocks), levels = level_family(blocks);
  lane.gap_set = read_set_number(in, &last->sets[gaps], fitted[gaps] != nullptr);
  lane.level_set = read_set_number(in, &last->sets[levels], fitted[levels] != nullptr);
  return lane;
}

}  // namespace

void write_lane(BitWriter& out, const Lane& lane, LastLane* last) {
  const uint32_t size = lane.block.size;
  out.put(size == last->block_size ? 1 : 0, 1);
  if (size != last->block_size) out.put(size, kBlockBits);
  if (size > 0) out.put(lane.block.position, position_bits(size));
  last->block_size = size;
  write_set_number(out, lane.gap_set, &last->sets[gap_family(size > 0)]);
  write_set_number(out, lane.level_set, &last->sets[level_family(size > 0)]);
}
std::vector<Lane> read_tables(BitReader& in, uint64_t n_lanes, FittedTables* fitted) {
  for (uint32_t f = 0; f < kFamilies; ++f) {
    const auto family = static_cast<Family>(f);
    if (const std::optional<FittedSet> set = read_set(in, family)) {
      (*fitted)[f] = table_of(family, *set);
    }
  }
  std::vector<Lane> lanes(n_lanes);
  LastLane last;
  for (Lane& lane : lanes) lane = read_lane(in, *fitted, &last);
  in.finish();
  return lanes;
}

}  // namespace resfed

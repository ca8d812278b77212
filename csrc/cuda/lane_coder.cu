#include <algorithm>
#include <cstring>

#include "cuda/lane_coder.cuh"

namespace resfed::cuda {
namespace {

void fill_in(const FittedTables& fitted, DeviceFitted* to) {
  std::memset(to, 0, sizeof *to);
  for (uint32_t f = 0; f < kFamilies; ++f) {
    if (fitted[f] == nullptr) continue;
    to->starts[f].fill(*fitted[f], static_cast<Family>(f));
    for (uint32_t code = 0; code < kRows[f] * kSymbols; ++code) {
      to->costs[f][code] = kCodeLengths.of[fitted[f]->slots[code].freq];
    }
  }
}

// Where the words of each slice may begin, and where all of them end.
std::vector<uint64_t> rooms_of(const Partition& p, const std::vector<Lane>& lanes,
                               const std::vector<LaneCosts>& costs,
                               const std::vector<uint32_t>& raw_bits) {
  std::vector<uint64_t> rooms(slices_of(p.n_parts) + 1, 0);
  for (uint64_t l = 0; l < p.n_parts; ++l) {
    const uint64_t cost =
        uint64_t{costs[l].gaps[lanes[l].gap_set]} + costs[l].levels[lanes[l].level_set];
    rooms[l / kLanesOfSlice + 1] +=
        most_words_of_lane(part_begin(p, l + 1) - part_begin(p, l), cost, raw_bits[l]);
  }
  for (size_t s = 1; s < rooms.size(); ++s) rooms[s] += rooms[s - 1];
  return rooms;
}

}  // namespace

template <class Nonzero>
void LaneCoder<Nonzero>::take(BumpAllocator& allocator, uint64_t most_nonzeros) {
  const uint64_t n_lanes = partition(most_nonzeros, lane_log2_).n_parts;
  const uint64_t n_slices = slices_of(n_lanes);
  codes_ = allocator.take<NonzeroCode>(most_nonzeros);
  found_ = allocator.take<FoundLane>(n_lanes);
  counts_ = allocator.take<uint32_t>(kCounts);
  fitted_ = allocator.take<DeviceFitted>(1);
  fitted_costs_ = allocator.take<FittedCosts>(n_lanes);
  lanes_ = allocator.take<Lane>(n_lanes);
  rooms_ = allocator.take<uint64_t>(n_slices + 1);
  places_ = allocator.take<uint64_t>(n_slices);
}

template <class Nonzero>
auto LaneCoder<Nonzero>::find(const Stage& stage, const Nonzero* sent, const Partition& p,
                              ScanCoder* scans, BitWriter* tables) -> Found {
  const MatrixList matrices = scans != nullptr ? scans->matrices() : MatrixList{nullptr, 0};
  find_symbols(stage, sent, p, matrices, codes_, found_, counts_);
  find_lane_costs(stage, kPart, codes_, p, lease_.trained_tables(), found_, counts_);
  FoundLane* lanes = nullptr;
  uint32_t* counts = nullptr;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    lanes = allocator.take<FoundLane>(p.n_parts);
    counts = allocator.take<uint32_t>(kCounts);
    if (scans != nullptr) scans->take_results(allocator);
    return allocator.n_bytes();
  };
  carve(lease_.host_results(carve(nullptr)));
  lease_.copy_out(lanes, found_, p.n_parts * sizeof(FoundLane));
  lease_.copy_out(counts, counts_, kCounts * sizeof(uint32_t));
  if (scans != nullptr) scans->copy_out();
  lease_.wait();
  if (scans != nullptr) scans->write(tables);
  Found found;
  for (uint64_t l = 0; l < p.n_parts; ++l) {
    found.lanes.push_back({lanes[l].block, lanes[l].shift});
    found.costs.push_back(lanes[l].costs);
    found.raw_bits.push_back(lanes[l].raw_bits);
  }
  for (uint32_t f = 0; f < kFamilies; ++f) {
    found.counts[f].assign(counts + f * kCodes, counts + (f + 1) * kCodes);
  }
  return found;
}

template <class Nonzero>
void LaneCoder<Nonzero>::add_fitted_costs(const Stage& stage, const Partition& p,
                                          const FittedTables& fitted,
                                          std::vector<LaneCosts>* costs) {
  if (std::none_of(fitted, fitted + kFamilies, [](const auto& table) { return bool(table); })) {
    return;
  }
  auto* const tables = static_cast<DeviceFitted*>(lease_.host_tables(sizeof(DeviceFitted)));
  fill_in(fitted, tables);
  lease_.copy_in(fitted_, tables, sizeof(DeviceFitted));
  find_fitted_costs(stage, kPart, codes_, p, fitted_, found_, fitted_costs_);
  const size_t n_bytes = p.n_parts * sizeof(FittedCosts);
  auto* const sums = static_cast<FittedCosts*>(lease_.host_results(n_bytes));
  lease_.copy_out(sums, fitted_costs_, n_bytes);
  lease_.wait();
  for (uint64_t l = 0; l < p.n_parts; ++l) {
    (*costs)[l].gaps[kFittedSet] = sums[l].gaps;
    (*costs)[l].levels[kFittedSet] = sums[l].levels;
  }
}

template <class Nonzero>
SliceViews LaneCoder<Nonzero>::write(const Stage& stage, const Nonzero* sent, const Partition& p,
                                     const std::vector<Lane>& lanes,
                                     const std::vector<uint64_t>& rooms) {
  const uint64_t n_slices = rooms.size() - 1, n_words = rooms.back();
  Lane* own_lanes = nullptr;
  uint64_t *own_rooms = nullptr, *places = nullptr;
  uint16_t* words = nullptr;
  const auto carve_tables = [&](void* memory) {
    BumpAllocator allocator(memory);
    own_lanes = allocator.take<Lane>(lanes.size());
    own_rooms = allocator.take<uint64_t>(rooms.size());
    return allocator.n_bytes();
  };
  const auto carve_results = [&](void* memory) {
    BumpAllocator allocator(memory);
    places = allocator.take<uint64_t>(n_slices);
    words = allocator.take<uint16_t>(n_words);
    return allocator.n_bytes();
  };
  carve_tables(lease_.host_tables(carve_tables(nullptr)));
  carve_results(lease_.host_results(carve_results(nullptr)));
  auto* const device_words = static_cast<uint16_t*>(lease_.coded(n_words * sizeof(uint16_t)));
  std::copy(lanes.begin(), lanes.end(), own_lanes);
  std::copy(rooms.begin(), rooms.end(), own_rooms);
  lease_.copy_in(lanes_, own_lanes, lanes.size() * sizeof(Lane));
  lease_.copy_in(rooms_, own_rooms, rooms.size() * sizeof(uint64_t));
  encode_lanes(stage, sent, codes_, {p, lanes_, {lease_.trained_tables(), fitted_->starts}}, rooms_,
               device_words, places_);
  lease_.copy_out(places, places_, n_slices * sizeof(uint64_t));
  lease_.copy_out(words, device_words, n_words * sizeof(uint16_t));
  lease_.wait();
  SliceViews slices;
  for (uint64_t s = 0; s < n_slices; ++s) {
    slices.emplace_back(reinterpret_cast<const uint8_t*>(words + places[s]),
                        (rooms[s + 1] - places[s]) * sizeof(uint16_t));
  }
  return slices;
}

template <class Nonzero>
CodedNonzeros LaneCoder<Nonzero>::encode(const Stage& stage, const Nonzero* sent, uint64_t n,
                                         ScanCoder* scans) {
  const Partition p = partition(n, lane_log2_);
  if (n == 0) return {};
  BitWriter tables;
  Found found = find(stage, sent, p, scans, &tables);
  FittedTables fitted;
  fit_tables(kPart, found.counts, &fitted, &tables);
  add_fitted_costs(stage, p, fitted, &found.costs);
  choose_sets(kPart, found.costs, fitted, &found.lanes, &tables);
  const auto rooms = rooms_of(p, found.lanes, found.costs, found.raw_bits);
  const SliceViews slices = write(stage, sent, p, found.lanes, rooms);
  return {tables.finish(), slices};
}

template class LaneCoder<SentSymbol>;
template class LaneCoder<ChangedElement>;

}  // namespace resfed::cuda

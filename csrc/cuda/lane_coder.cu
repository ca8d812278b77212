#include <algorithm>
#include <cstring>

#include "cuda/lane_coder.cuh"

namespace resfed::cuda {
namespace {

bool is_any_scanned(const MatrixShapes& matrices) {
  return std::any_of(matrices.begin(), matrices.end(),
                     [](const MatrixShape& m) { return m.row_length > 0; });
}

void fill_in(const FittedTables& fitted, DeviceFitted* to) {
  std::memset(to, 0, sizeof *to);
  for (uint32_t f = 0; f < kFamilies; ++f) {
    if (fitted[f] == nullptr) continue;
    std::memcpy(&to->starts[f], fitted[f]->starts, sizeof(TableStarts));
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

void LaneCoder::take(BumpAllocator& allocator, uint64_t most_symbols, uint64_t n_matrices) {
  const uint64_t n_lanes = partition(most_symbols, lane_log2_).n_parts;
  const uint64_t n_slices = slices_of(n_lanes);
  sent_ = allocator.take<SentSymbol>(most_symbols);
  matrices_ = allocator.take<MatrixShape>(n_matrices);
  codes_ = allocator.take<NonzeroCode>(most_symbols);
  found_ = allocator.take<FoundLane>(n_lanes);
  counts_ = allocator.take<uint32_t>(kCounts);
  fitted_ = allocator.take<DeviceFitted>(1);
  fitted_costs_ = allocator.take<FittedCosts>(n_lanes);
  lanes_ = allocator.take<Lane>(n_lanes);
  rooms_ = allocator.take<uint64_t>(n_slices + 1);
  places_ = allocator.take<uint64_t>(n_slices);
}

// Brings the symbols into scan order: on the host, if there is a matrix to be scanned.
MatrixList LaneCoder::order(const SentSymbol* symbols, uint64_t n, SentSymbols vector,
                            SentSymbols dense, MatrixShapes& matrices, BitWriter* tables) {
  const uint64_t n_others = vector.size() + dense.size();
  SentSymbol* sent = nullptr;
  MatrixShape* shapes = nullptr;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    sent = allocator.take<SentSymbol>(n + n_others);
    shapes = allocator.take<MatrixShape>(matrices.size());
    return allocator.n_bytes();
  };
  carve(lease_.host_tables(carve(nullptr)));
  const bool on_host = n > 0 && is_any_scanned(matrices);
  if (on_host) {
    lease_.copy_out(sent, symbols, n * sizeof(SentSymbol));
    lease_.wait();
  } else if (n > 0) {
    lease_.copy(sent_, symbols, n * sizeof(SentSymbol));
  }
  scan({sent, on_host ? n : 0}, &matrices, tables);
  std::copy(dense.begin(), dense.end(), std::copy(vector.begin(), vector.end(), sent + n));
  std::copy(matrices.begin(), matrices.end(), shapes);
  const uint64_t first = on_host ? 0 : n;
  if (first < n + n_others) {
    lease_.copy_in(sent_ + first, sent + first, (n + n_others - first) * sizeof(SentSymbol));
  }
  if (!matrices.empty()) {
    lease_.copy_in(matrices_, shapes, matrices.size() * sizeof(MatrixShape));
  }
  return {matrices_, matrices.size()};
}

void LaneCoder::find(const Stage& stage, const Partition& p, MatrixList matrices,
                     std::vector<Lane>* lanes, std::vector<LaneCosts>* costs,
                     std::vector<uint32_t>* raw_bits, std::array<Counts, kFamilies>* counts) {
  find_symbols(stage, sent_, p, matrices, lease_.trained_tables(), codes_, found_, counts_);
  FoundLane* found = nullptr;
  uint32_t* all_counts = nullptr;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    found = allocator.take<FoundLane>(p.n_parts);
    all_counts = allocator.take<uint32_t>(kCounts);
    return allocator.n_bytes();
  };
  carve(lease_.host_results(carve(nullptr)));
  lease_.copy_out(found, found_, p.n_parts * sizeof(FoundLane));
  lease_.copy_out(all_counts, counts_, kCounts * sizeof(uint32_t));
  lease_.wait();
  for (uint64_t l = 0; l < p.n_parts; ++l) {
    (*lanes)[l].block = found[l].block;
    (*costs)[l] = found[l].costs;
    (*raw_bits)[l] = found[l].raw_bits;
  }
  for (uint32_t f = 0; f < kFamilies; ++f) {
    (*counts)[f].assign(all_counts + f * kCodes, all_counts + (f + 1) * kCodes);
  }
}

void LaneCoder::add_fitted_costs(const Stage& stage, const Partition& p, const FittedTables& fitted,
                                 std::vector<LaneCosts>* costs) {
  if (std::none_of(fitted, fitted + kFamilies, [](const auto& table) { return bool(table); })) {
    return;
  }
  auto* const tables = static_cast<DeviceFitted*>(lease_.host_tables(sizeof(DeviceFitted)));
  fill_in(fitted, tables);
  lease_.copy_in(fitted_, tables, sizeof(DeviceFitted));
  find_fitted_costs(stage, codes_, p, fitted_, found_, fitted_costs_);
  const size_t n_bytes = p.n_parts * sizeof(FittedCosts);
  auto* const sums = static_cast<FittedCosts*>(lease_.host_results(n_bytes));
  lease_.copy_out(sums, fitted_costs_, n_bytes);
  lease_.wait();
  for (uint64_t l = 0; l < p.n_parts; ++l) {
    (*costs)[l].gaps[kFittedSet] = sums[l].gaps;
    (*costs)[l].levels[kFittedSet] = sums[l].levels;
  }
}

SliceViews LaneCoder::write(const Stage& stage, const Partition& p, const std::vector<Lane>& lanes,
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
  encode_lanes(stage, sent_, codes_, {p, lanes_, {lease_.trained_tables(), fitted_->starts}},
               rooms_, device_words, places_);
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

CodedNonzeros LaneCoder::encode(const Stage& stage, const SentSymbol* symbols, uint64_t n,
                                SentSymbols vector, SentSymbols dense, MatrixShapes matrices) {
  const Partition p = partition(n + vector.size() + dense.size(), lane_log2_);
  if (p.n_symbols == 0) return {};
  BitWriter tables;
  const MatrixList shapes = order(symbols, n, vector, dense, matrices, &tables);
  std::vector<Lane> lanes(p.n_parts);
  std::vector<LaneCosts> costs(p.n_parts);
  std::vector<uint32_t> raw_bits(p.n_parts);
  std::array<Counts, kFamilies> counts;
  find(stage, p, shapes, &lanes, &costs, &raw_bits, &counts);
  FittedTables fitted;
  fit_tables(counts, &fitted, &tables);
  add_fitted_costs(stage, p, fitted, &costs);
  choose_sets(costs, fitted, &lanes, &tables);
  const SliceViews slices = write(stage, p, lanes, rooms_of(p, lanes, costs, raw_bits));
  return {tables.finish(), slices};
}

}  // namespace resfed::cuda

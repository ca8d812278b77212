#include <algorithm>
#include <cstring>

#include "cuda/lane_coder.cuh"

namespace resfed::cuda {
namespace {

constexpr uint64_t kWordBits = 32;
uint64_t whole_words(uint64_t n_bits) { return (n_bits + kWordBits - 1) / kWordBits * kWordBits; }

// What bitmaps and flips say of a matrix.
MatrixScan scan_of(const LinePlan& plan, const ScanChoice& choice, const uint32_t* occurs,
                   const uint8_t* flips) {
  const auto kept = [&](uint64_t first, uint64_t n, bool keeps) {
    std::vector<uint32_t> numbers;
    for (uint64_t i = 0; keeps && i < n; ++i) {
      const uint64_t line = first + i;
      if (occurs[line / kWordBits] >> line % kWordBits & 1u) {
        numbers.push_back(static_cast<uint32_t>(i));
      }
    }
    return numbers;
  };
  MatrixScan scan;
  scan.columns = choice.columns;
  scan.rows = kept(plan.first_row, plan.n_rows, choice.keeps_rows);
  scan.cols = kept(plan.first_col, plan.n_cols, choice.keeps_cols);
  const uint64_t length = choice.columns ? choice.n_rows : choice.n_cols;
  for (uint64_t i = 0; choice.flips && i < length; ++i) {
    scan.flips.push_back(flips[plan.first_row + i] != 0);
  }
  return scan;
}

void fill_in(const FittedTables& fitted, DeviceFitted* to) {
  std::memset(to, 0, sizeof *to);
  for (uint32_t f = 0; f < kLossyFamilies; ++f) {
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

LaneCoder::LaneCoder(WorkspaceLease& lease, const Group& group, unsigned lane_log2)
    : lease_(lease), lane_log2_(lane_log2) {
  uint64_t first = 0;
  for (const MatrixShape& m : shapes_of(group)) {
    plans_.push_back({});
    if (m.row_length == 0) continue;
    const uint64_t n_rows = m.n_elems / m.row_length, first_col = first + whole_words(n_rows);
    plans_.back() = {first, first_col, n_rows, m.row_length};
    first = first_col + whole_words(m.row_length);
  }
  scan_.n_matrices = plans_.size();
  scan_.n_lines = first;
}

void LaneCoder::take(BumpAllocator& allocator, uint64_t most_symbols) {
  const uint64_t n_lanes = partition(most_symbols, lane_log2_).n_parts;
  const uint64_t n_slices = slices_of(n_lanes);
  sent_ = allocator.take<SentSymbol>(most_symbols);
  scan_.matrices = allocator.take<MatrixShape>(scan_.n_matrices);
  scan_.plans = allocator.take<LinePlan>(scan_.n_matrices);
  scan_.choices = allocator.take<ScanChoice>(scan_.n_matrices);
  scan_.occurs = allocator.take<uint32_t>(scan_.n_lines / kWordBits);
  scan_.before = allocator.take<uint32_t>(scan_.n_lines / kWordBits);
  scan_.agree = allocator.take<unsigned long long>(scan_.n_lines);
  scan_.flips = allocator.take<uint8_t>(scan_.n_lines);
  scan_.any_columns = allocator.take<uint32_t>(1);
  const uint64_t n_counts = scan_.n_lines > 0 ? n_sort_tiles(most_symbols) << kMostDigitBits : 0;
  scan_.histograms = allocator.take<uint32_t>(n_counts);
  scan_.digit_counts = allocator.take<uint32_t>(1u << kMostDigitBits);
  codes_ = allocator.take<NonzeroCode>(most_symbols);
  found_ = allocator.take<FoundLane>(n_lanes);
  counts_ = allocator.take<uint32_t>(kCounts);
  fitted_ = allocator.take<DeviceFitted>(1);
  fitted_costs_ = allocator.take<FittedCosts>(n_lanes);
  lanes_ = allocator.take<Lane>(n_lanes);
  rooms_ = allocator.take<uint64_t>(n_slices + 1);
  places_ = allocator.take<uint64_t>(n_slices);
}

// Brings the symbols into scan order.
void LaneCoder::order(const Stage& stage, const SentSymbol* symbols, uint64_t n, SentSymbols vector,
                      SentSymbols dense, const MatrixShapes& matrices) {
  const uint64_t n_others = vector.size() + dense.size();
  SentSymbol* others = nullptr;
  MatrixShape* shapes = nullptr;
  LinePlan* plans = nullptr;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    others = allocator.take<SentSymbol>(n_others);
    shapes = allocator.take<MatrixShape>(matrices.size());
    plans = allocator.take<LinePlan>(matrices.size());
    return allocator.n_bytes();
  };
  carve(lease_.host_tables(carve(nullptr)));
  std::copy(dense.begin(), dense.end(), std::copy(vector.begin(), vector.end(), others));
  std::copy(matrices.begin(), matrices.end(), shapes);
  std::copy(plans_.begin(), plans_.end(), plans);
  if (n_others > 0) lease_.copy_in(sent_ + n, others, n_others * sizeof(SentSymbol));
  lease_.copy_in(scan_.matrices, shapes, matrices.size() * sizeof(MatrixShape));
  lease_.copy_in(scan_.plans, plans, matrices.size() * sizeof(LinePlan));
  if (scan_.n_lines > 0) {
    static_assert(sizeof(NonzeroCode) == sizeof(SentSymbol));
    scan_symbols(stage, symbols, n, scan_, sent_, reinterpret_cast<SentSymbol*>(codes_));
  } else if (n > 0) {
    lease_.copy(sent_, symbols, n * sizeof(SentSymbol));
  }
}

LaneCoder::Found LaneCoder::find(const Stage& stage, const Partition& p,
                                 const MatrixShapes& matrices, BitWriter* tables) {
  find_symbols(stage, sent_, p, {scan_.matrices, scan_.n_matrices}, lease_.trained_tables(), codes_,
               found_, counts_);
  const uint64_t n_lines = scan_.n_lines, n_choices = n_lines > 0 ? matrices.size() : 0;
  FoundLane* lanes = nullptr;
  uint32_t *counts = nullptr, *occurs = nullptr;
  ScanChoice* choices = nullptr;
  uint8_t* flips = nullptr;
  const auto carve = [&](void* memory) {
    BumpAllocator allocator(memory);
    lanes = allocator.take<FoundLane>(p.n_parts);
    counts = allocator.take<uint32_t>(kCounts);
    choices = allocator.take<ScanChoice>(n_choices);
    occurs = allocator.take<uint32_t>(n_lines / kWordBits);
    flips = allocator.take<uint8_t>(n_lines);
    return allocator.n_bytes();
  };
  carve(lease_.host_results(carve(nullptr)));
  lease_.copy_out(lanes, found_, p.n_parts * sizeof(FoundLane));
  lease_.copy_out(counts, counts_, kCounts * sizeof(uint32_t));
  if (n_lines > 0) {
    lease_.copy_out(choices, scan_.choices, n_choices * sizeof(ScanChoice));
    lease_.copy_out(occurs, scan_.occurs, n_lines / kWordBits * sizeof(uint32_t));
    lease_.copy_out(flips, scan_.flips, n_lines);
  }
  lease_.wait();
  for (uint64_t i = 0; i < n_choices; ++i) {
    if (matrices[i].row_length == 0) continue;
    write_scan(*tables, matrices[i], scan_of(plans_[i], choices[i], occurs, flips));
  }
  Found found;
  for (uint64_t l = 0; l < p.n_parts; ++l) {
    found.lanes.push_back({lanes[l].block, lanes[l].shift});
    found.costs.push_back(lanes[l].costs);
    found.raw_bits.push_back(lanes[l].raw_bits);
  }
  for (uint32_t f = 0; f < kLossyFamilies; ++f) {
    found.counts[f].assign(counts + f * kCodes, counts + (f + 1) * kCodes);
  }
  return found;
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
                                SentSymbols vector, SentSymbols dense,
                                const MatrixShapes& matrices) {
  const Partition p = partition(n + vector.size() + dense.size(), lane_log2_);
  if (p.n_symbols == 0) return {};
  BitWriter tables;
  order(stage, symbols, n, vector, dense, matrices);
  Found found = find(stage, p, matrices, &tables);
  FittedTables fitted;
  fit_tables(Part::kLossy, found.counts, &fitted, &tables);
  add_fitted_costs(stage, p, fitted, &found.costs);
  choose_sets(Part::kLossy, found.costs, fitted, &found.lanes, &tables);
  const auto rooms = rooms_of(p, found.lanes, found.costs, found.raw_bits);
  const SliceViews slices = write(stage, p, found.lanes, rooms);
  return {tables.finish(), slices};
}

}  // namespace resfed::cuda

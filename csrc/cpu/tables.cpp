#include "entropy/tables.hpp"

#include <algorithm>
#include <iterator>
#include <numeric>

#include "cpu/divisor.hpp"
#include "entropy/tables_v1.hpp"

namespace resfed {
namespace {

constexpr unsigned kRatioCountBits = 5, kSourceBits = 4;

// Symbols of a row, for which ratios may pay.
constexpr uint64_t kLeastFitted = 16;
// Of a row with ratios: that it is no row of the base, their number, one that is not 0.
constexpr int64_t kLeastBitsOfRatios = 2 + kRatioCountBits + 3;

// By ratio + kMostHalfOctaves.
struct Ratios {
  static constexpr int kNumber = 2 * kMostHalfOctaves + 1;
  uint64_t scale[kNumber] = {};  // of a weight of 1
  // N (2^(ratio / 2) - 1) log2(e) in 1/32 bit, times 256, for N = 1: what the other symbols lose if
  // a symbol's weight grows by the ratio.
  int64_t loss[kNumber] = {};
  int64_t bits[kNumber] = {};  // of the ratio itself
};
constexpr Ratios kRatios = [] {
  Ratios ratios;
  for (int i = 0; i < Ratios::kNumber; ++i) {
    const int ratio = i - kMostHalfOctaves, size = ratio < 0 ? -ratio : ratio;
    ratios.scale[i] = scaled_weight(1, ratio);
    const int64_t growth = static_cast<int64_t>(ratios.scale[i]) - (int64_t{1} << 23);
    ratios.loss[i] = growth * 11819 >> 23;  // 32 * 256 * log2(e)
    ratios.bits[i] = 1;
    for (int n = size; n > 0; n /= 2) ratios.bits[i] += 2;
  }
  return ratios;
}();
uint64_t scale(int ratio) { return kRatios.scale[ratio + kMostHalfOctaves]; }
int64_t bits_of(int ratio) { return kRatios.bits[ratio + kMostHalfOctaves]; }

uint64_t cost_of(const uint32_t* counts, const Frequencies& row) {
  uint64_t cost = 0;
  for (uint32_t s = 0; s < kSymbols; ++s) {
    cost += uint64_t{counts[s]} * kCodeLengths.of[row.of[s]];
  }
  return cost;
}

Frequencies row_of(const Frequencies& source, const FittedRow& row) {
  uint64_t weights[kSymbols];
  for (uint32_t s = 0; s < kSymbols; ++s) weights[s] = source.of[s] * scale(row.ratios[s]);
  return normalized(weights);
}

// As log2_in_32nds, which is slow, but for small numbers.
int64_t log2_of(uint64_t value) {
  return value <= kFrequencyOne ? 32 * kFrequencyBits - kCodeLengths.of[value]
                                : log2_in_32nds(value);
}

// No frequencies code so many symbols, n together, for less: their entropy. Logarithms and code
// lengths are rounded, by 1 and by 1/2 at most.
int64_t least_cost(const uint32_t* counts, uint64_t n) {
  const int64_t log_n = log2_of(n);
  int64_t cost = 0;
  for (uint32_t s = 0; s < kSymbols; ++s) {
    if (counts[s] > 0) cost += int64_t{counts[s]} * (log_n - log2_of(counts[s]) - 2);
  }
  return cost;
}

// Ratios to the source's row, each of which must pay.
FittedRow fit_row(const uint32_t* counts, const Frequencies& source) {
  FittedRow row;
  uint64_t n = 0;
  for (uint32_t s = 0; s < kSymbols; ++s) n += counts[s];
  unsigned shift = 0;  // so that products of 64 bits suffice
  while (n >> shift >= 1u << 20) ++shift;
  const auto scaled_n = static_cast<int64_t>(n >> shift);
  const auto log_n = log2_of(n);
  int64_t wanted[kSymbols];  // 32 log2 of observed over expected
  for (uint32_t s = 0; s < kSymbols; ++s) {
    const int64_t log_count = counts[s] > 0 ? log2_of(counts[s]) : -64;  // as if 1/4 was seen
    wanted[s] = log_count - log_n + kCodeLengths.of[source.of[s]];
  }
  for (int pass = 0; pass < 2; ++pass) {
    uint64_t sum = 0;
    for (uint32_t s = 0; s < kSymbols; ++s) sum += source.of[s] * scale(row.ratios[s]);
    const Divisor of_sum(sum);
    const int64_t log_sum = int64_t{log2_in_32nds(sum)} - 32 * (23 + int64_t{kFrequencyBits});
    for (uint32_t s = 0; s < kSymbols; ++s) {
      const int64_t ratio =
          std::clamp<int64_t>((wanted[s] + log_sum + 8) >> 4, -kMostHalfOctaves, kMostHalfOctaves);
      const int r = static_cast<int>(ratio);
      // In 2^-12.
      const auto share = static_cast<int64_t>(of_sum.divide(uint64_t{source.of[s]} << 35).quotient);
      const int64_t gain = static_cast<int64_t>(counts[s] >> shift) * 16 * r -
                           (scaled_n * share * kRatios.loss[r + kMostHalfOctaves] >> 20);
      const bool pays = gain << shift > 32 * (bits_of(r) - 1) + 16;  // never where r is 0
      row.ratios[s] = static_cast<int8_t>(pays ? r : 0);
    }
    row.n_ratios = kSymbols;
    while (row.n_ratios > 0 && row.ratios[row.n_ratios - 1] == 0) --row.n_ratios;
    if (row.n_ratios == 0) break;  // another pass would find the same
  }
  return row;
}

}  // namespace

void Table::fill(uint32_t n_rows) {
  for (uint32_t r = 0; r < n_rows; ++r) {
    uint32_t start = 0;
    for (uint32_t s = 0; s < kSymbols; ++s) {
      starts[r][s] = static_cast<uint16_t>(start);
      slots[r * kSymbols + s] = {static_cast<uint16_t>(start), rows[r].of[s]};
      start += rows[r].of[s];
    }
  }
}

const TrainedTables& trained_tables() {
  static const std::unique_ptr<const TrainedTables> tables = [] {
    auto made = std::make_unique<TrainedTables>();
    const auto* row = kTrainedRowsV1;
    static_assert(std::size(kTrainedRowsV1) ==
                  kTrainedSets * std::accumulate(kRows, kRows + kFamilies, 0u));
    for (uint32_t family = 0; family < kFamilies; ++family) {
      for (uint32_t set = 0; set < kTrainedSets; ++set) {
        Table& table = made->sets[family][set];
        for (uint32_t r = 0; r < kRows[family]; ++r) {
          table.rows[r] = trained_row(*row++);
          for (uint32_t s = 0; s < kSymbols; ++s) {
            made->costs[family][r * kSymbols + s][set] = kCodeLengths.of[table.rows[r].of[s]];
          }
        }
        table.fill(kRows[family]);
      }
    }
    return made;
  }();
  return *tables;
}

std::optional<FittedSet> fit_set(Family family, const Counts& counts) {
  const TrainedTables& trained = trained_tables();
  const auto& costs = trained.costs[family];
  uint64_t totals[kMostRows][kTrainedSets] = {}, total[kTrainedSets] = {};
  for (uint32_t i = 0; i < kRows[family] * kSymbols; ++i) {
    if (counts[i] == 0) continue;
    for (uint32_t set = 0; set < kTrainedSets; ++set) {
      totals[i / kSymbols][set] += uint64_t{counts[i]} * costs[i][set];
    }
  }
  for (uint32_t set = 0; set < kTrainedSets; ++set) {
    for (uint32_t r = 0; r < kRows[family]; ++r) total[set] += totals[r][set];
  }
  if (std::all_of(total, total + kTrainedSets, [](uint64_t t) { return t == 0; })) {
    return std::nullopt;
  }
  FittedSet fitted;
  fitted.base = static_cast<uint8_t>(std::min_element(total, total + kTrainedSets) - total);
  int64_t gain = -32 * (1 + int64_t{kSourceBits} + kRows[family]);  // of the set over its base
  for (uint32_t r = 0; r < kRows[family]; ++r) {
    const uint32_t* const row_counts = counts.data() + r * kSymbols;
    const uint64_t as_base = totals[r][fitted.base];
    uint64_t least = as_base;
    const auto other =
        static_cast<uint8_t>(std::min_element(totals[r], totals[r] + kTrainedSets) - totals[r]);
    fitted.rows[r].source = fitted.base;
    const auto try_row = [&](const FittedRow& row, uint64_t cost) {
      uint64_t bits = 2 + (row.source == fitted.base ? 0 : kSourceBits);
      if (row.n_ratios > 0) bits += kRatioCountBits;
      for (uint32_t s = 0; s < row.n_ratios; ++s)
        bits += static_cast<uint64_t>(bits_of(row.ratios[s]));
      if (cost + 32 * bits >= least) return;
      least = cost + 32 * bits;
      fitted.rows[r] = row;
    };
    const uint64_t n = std::accumulate(row_counts, row_counts + kSymbols, uint64_t{0});
    if (n == 0) continue;
    const bool ratios = n >= kLeastFitted;
    const int64_t bound = least_cost(row_counts, n) + 32 * kLeastBitsOfRatios;
    for (const uint8_t source : {fitted.base, other}) {
      FittedRow plain;
      plain.source = source;
      if (source != fitted.base) try_row(plain, totals[r][source]);
      if (!ratios || bound >= static_cast<int64_t>(least)) continue;
      FittedRow row = fit_row(row_counts, trained.sets[family][source].rows[r]);
      row.source = source;
      if (row.n_ratios > 0) {
        try_row(row, cost_of(row_counts, row_of(trained.sets[family][source].rows[r], row)));
      }
      if (other == fitted.base) break;
    }
    gain += static_cast<int64_t>(as_base - least);
  }
  if (gain <= 0) return std::nullopt;
  return fitted;
}

void write_set(BitWriter& out, Family family, const std::optional<FittedSet>& set) {
  out.put(set ? 1 : 0, 1);
  if (!set) return;
  out.put(set->base, kSourceBits);
  for (uint32_t r = 0; r < kRows[family]; ++r) {
    const FittedRow& row = set->rows[r];
    const bool same = row.source == set->base;
    out.put(same && row.n_ratios == 0 ? 0 : 1, 1);
    if (same && row.n_ratios == 0) continue;
    out.put(same ? 1 : 0, 1);
    if (!same) {
      out.put(row.source, kSourceBits);
      out.put(row.n_ratios > 0 ? 1 : 0, 1);
    }
    if (row.n_ratios == 0) continue;
    out.put(row.n_ratios - 1u, kRatioCountBits);
    for (uint32_t s = 0; s < row.n_ratios; ++s) {
      const int ratio = row.ratios[s];
      out.put(ratio != 0 ? 1 : 0, 1);
      if (ratio == 0) continue;
      out.put(ratio < 0 ? 1 : 0, 1);
      out.put_gamma(static_cast<uint32_t>(std::abs(ratio)));
    }
  }
}

std::optional<FittedSet> read_set(BitReader& in, Family family) {
  if (in.get(1) == 0) return std::nullopt;
  FittedSet set;
  set.base = static_cast<uint8_t>(in.get(kSourceBits));
  for (uint32_t r = 0; r < kRows[family]; ++r) {
    FittedRow& row = set.rows[r];
    row.source = set.base;
    if (in.get(1) == 0) continue;
    if (in.get(1) == 0) {
      row.source = static_cast<uint8_t>(in.get(kSourceBits));
      if (in.get(1) == 0) continue;
    }
    row.n_ratios = static_cast<uint8_t>(in.get(kRatioCountBits) + 1);
    for (uint32_t s = 0; s < row.n_ratios; ++s) {
      if (in.get(1) == 0) continue;
      const bool negative = in.get(1) != 0;
      const int ratio = static_cast<int>(in.get_gamma(kMostHalfOctaves));
      row.ratios[s] = static_cast<int8_t>(negative ? -ratio : ratio);
    }
  }
  return set;
}

std::unique_ptr<Table> table_of(Family family, const FittedSet& set) {
  auto table = std::make_unique_for_overwrite<Table>();
  for (uint32_t r = 0; r < kRows[family]; ++r) {
    const Frequencies& source = trained_tables().sets[family][set.rows[r].source].rows[r];
    table->rows[r] = set.rows[r].n_ratios > 0 ? row_of(source, set.rows[r]) : source;
  }
  table->fill(kRows[family]);
  return table;
}

}  // namespace resfed

// Tables of an interleaved rANS: trained sets, which are part of the format, and fitted sets, which
// a payload carries. Host code that every backend shares.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "entropy/frequencies.hpp"
#include "entropy/lane.hpp"
#include "entropy/slots.hpp"
#include "format/bits.hpp"

namespace resfed {

constexpr uint32_t kTrainedSets = 16;          // of each family
constexpr uint32_t kFittedSet = kTrainedSets;  // the number of a payload's own

// One set of a family, in the forms that coders want. Rows beyond the family's are unused.
struct Table {
  Frequencies rows[kMostRows];
  Slots slots[kMostRows * kSymbols];
  alignas(64) uint16_t starts[kMostRows][kSymbols];

  void fill(uint32_t n_rows);  // slots and starts, from rows
};

struct TrainedTables {
  Table sets[kFamilies][kTrainedSets];
  // Code lengths in 1/32 bit by row * kSymbols + symbol, of all sets side by side.
  alignas(64) uint16_t costs[kFamilies][kMostRows * kSymbols][kTrainedSets];
};
const TrainedTables& trained_tables();

using Counts = std::vector<uint32_t>;  // of the symbols of a family, row * kSymbols + symbol

// How a fitted row differs from one of the trained sets: that of `source`, with the frequencies of
// the first n_ratios symbols multiplied by 2^(ratio / 2).
struct FittedRow {
  uint8_t source = 0;
  uint8_t n_ratios = 0;
  int8_t ratios[kSymbols] = {};
};
struct FittedSet {
  uint8_t base = 0;
  FittedRow rows[kMostRows];
};

// The set that is cheapest for these counts with what it costs itself; nothing if it does not pay.
std::optional<FittedSet> fit_set(Family family, const Counts& counts);
void write_set(BitWriter& out, Family family, const std::optional<FittedSet>& set);
std::optional<FittedSet> read_set(BitReader& in, Family family);
std::unique_ptr<Table> table_of(Family family, const FittedSet& set);

// Of a payload; null where it has none.
using FittedTables = std::unique_ptr<Table>[kFamilies];
inline const Table* table_at(Family family, uint8_t set, const FittedTables& fitted) {
  return set == kFittedSet ? fitted[family].get() : &trained_tables().sets[family][set];
}

}  // namespace resfed

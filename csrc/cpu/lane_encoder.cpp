#include <algorithm>
#include <array>
#include <atomic>

#include "cpu/lane_kernels.hpp"
#include "cpu/threads.hpp"

namespace resfed {
namespace {

// Of all nonzeros: symbols with their rows, as row * kSymbols + symbol, and raw bits: the place in
// the symbol's class, of a long one the first piece of it, or an escape's exponent.
struct Codes {
  Scratch<uint16_t> gaps, levels, raw_gaps, raw_levels;
  // What occurs in a step of a slice, at the slice's first nonzero + the step.
  Scratch<uint8_t> steps;

  explicit Codes(uint64_t n) : gaps(n), levels(n), raw_gaps(n), raw_levels(n), steps(n) {
    std::fill(steps.begin(), steps.end(), uint8_t{0});
  }
};
// Raw bits of a symbol, by symbol; of a level without a shift.
struct RawBits {
  uint8_t of_gap[kSymbols] = {}, of_level[kSymbols] = {};
};
constexpr RawBits kRawBits = [] {
  RawBits bits;
  for (uint32_t s = 0; s < kSymbols; ++s) {
    bits.of_gap[s] = static_cast<uint8_t>(gap_raw_bits(s));
    bits.of_level[s] = static_cast<uint8_t>(level_raw_bits(s, 0));
  }
  return bits;
}();

template <bool kBlocks, class Nonzero>
void find_codes(std::span<const Nonzero> sent, uint64_t begin, uint64_t end, const Lane& lane,
                uint8_t* steps, Codes* codes) {
  const auto visit = [&](uint64_t i, const NonzeroCode& code) {
    codes->gaps[i] = code.gap;
    codes->raw_gaps[i] = code.raw_gap;
    codes->levels[i] = code.level;
    codes->raw_levels[i] = code.raw_level;
    steps[i - begin] = static_cast<uint8_t>(steps[i - begin] | code.occurs);
  };
  for_each_code<kBlocks>(sent.data(), begin, end, lane.block, lane.shift, visit);
}

// Chooses how a lane is coded, and finds its symbols.
template <class Nonzero>
Lane begin_lane(std::span<const Nonzero> sent, const MatrixShapes& matrices, uint64_t begin,
                uint64_t end, uint8_t* steps, Codes* codes) {
  const auto own = sent.subspan(begin, end - begin);
  Lane lane;
  lane.block = choose_block(own.data(), own.size(), matrices.data(), matrices.size());
  lane.shift = static_cast<uint8_t>(choose_shift(own.data(), own.size()));
  const auto find = lane.block.size > 0 ? find_codes<true, Nonzero> : find_codes<false, Nonzero>;
  find(sent, begin, end, lane, steps, codes);
  return lane;
}

// Code lengths of a lane's symbols under all trained sets; counts the symbols.
void find_costs(const uint16_t* codes, uint64_t n, const uint16_t (*costs)[kTrainedSets],
                SetCosts* sum, uint32_t* counts) {
  using Eight = uint16_t __attribute__((vector_size(16)));
  static_assert(kTrainedSets == 16);
  sum->fill(0);
  constexpr uint64_t kWithoutOverflow = 128;  // symbols; none costs more than 384
  for (uint64_t begin = 0; begin < n; begin += kWithoutOverflow) {
    Eight some = {}, others = {};
    const uint64_t end = std::min(n, begin + kWithoutOverflow);
    for (uint64_t i = begin; i < end; ++i) {
      const auto* const of_code = reinterpret_cast<const Eight*>(costs[codes[i]]);
      some += of_code[0];
      others += of_code[1];
      ++counts[codes[i]];
    }
    for (uint32_t set = 0; set < 8; ++set) {
      (*sum)[set] += some[set];
      (*sum)[8 + set] += others[set];
    }
  }
}

uint32_t cost_under(const Table& table, const uint16_t* codes, uint64_t n) {
  uint32_t cost = 0;
  for (uint64_t i = 0; i < n; ++i) cost += kCodeLengths.of[table.slots[codes[i]].freq];
  return cost;
}

// Words of a slice, written downwards.
class WordWriter {
 public:
  explicit WordWriter(size_t expected) : words_(std::max<size_t>(expected, kStep)) {
    next_ = words_.data() + words_.size();
  }
  void make_room() {
    if (next_ - words_.data() >= static_cast<ptrdiff_t>(kStep)) return;
    const size_t n = size();
    Scratch<uint16_t> larger(2 * words_.size() + kStep);
    std::copy(next_, words_.data() + words_.size(), larger.data() + larger.size() - n);
    words_ = std::move(larger);
    next_ = words_.data() + words_.size() - n;
  }
  void put(uint32_t& state, Slots slots) {
    state = with_symbol(with_room(state, state >= lane_limit(slots.freq)), slots);
  }
  void put_raw(uint32_t& state, uint32_t value, unsigned n_bits) {  // n_bits <= 16
    state = with_room(state, static_cast<uint64_t>(state) << n_bits >> 32 != 0) << n_bits | value;
  }
  void put_pieces(uint32_t& state, uint64_t value, unsigned n_bits) {
    for_each_piece_backwards(value, n_bits,
                             [&](uint32_t piece, unsigned n) { put_raw(state, piece, n); });
  }
  size_t room() const { return static_cast<size_t>(next_ - words_.data()); }
  uint16_t* next() { return next_; }
  void go_on_below(uint16_t* next) { next_ = next; }
  size_t size() const { return static_cast<size_t>(words_.data() + words_.size() - next_); }
  const uint16_t* data() const { return next_; }

 private:
  static constexpr size_t kStep = kLanesOfSlice * kMostWordsOfNonzero + 1;
  uint32_t with_room(uint32_t state, bool full) {  // a word is written where the state is full
    next_[-1] = static_cast<uint16_t>(state);
    next_ -= full ? 1 : 0;
    return state >> (full ? 16 : 0);
  }
  Scratch<uint16_t> words_;
  uint16_t* next_;
};

// A nonzero of each lane, backwards: the decoder reads gaps, their raw bits, levels, their raw
// bits, of all lanes.
template <class Nonzero>
void encode_step(std::span<const Nonzero> sent, const Codes& codes, uint8_t occurs,
                 const uint64_t* begins, uint64_t step, uint32_t active, LaneCodes* lanes,
                 WordWriter& words) {
  const auto for_each_lane = [&](auto visit) {
    for (uint32_t i = active; i-- > 0;) visit(lanes->state[i], begins[i] + step, i);
  };
  if (occurs & kLongLevels) {
    for_each_lane([&](uint32_t& state, uint64_t at, uint32_t i) {
      const RestOfLevel rest =
          rest_of_level(magnitude(sent[at].level()), codes.levels[at] % kSymbols, lanes->shift[i]);
      words.put_pieces(state, rest.bits, rest.n_bits);
    });
  }
  if (occurs & kRawLevels) {
    for_each_lane([&](uint32_t& state, uint64_t at, uint32_t i) {
      const uint32_t symbol = codes.levels[at] % kSymbols;
      const unsigned shift = symbol % kSignChanged == kLevelEscape ? 0 : lanes->shift[i];
      const unsigned n_bits = kRawBits.of_level[symbol] + shift;
      words.put_raw(state, codes.raw_levels[at], std::min(n_bits, kPieceBits));
    });
  }
  for_each_lane([&](uint32_t& state, uint64_t at, uint32_t i) {
    words.put(state, lanes->level_slots[i][codes.levels[at]]);
  });
  if (occurs & kGapEscapes) {
    for_each_lane([&](uint32_t& state, uint64_t at, uint32_t) {
      if (codes.gaps[at] % kSymbols != kGapEscape) return;
      const uint64_t gap = gap_at(sent.data(), at);
      words.put_pieces(state, gap, floor_log2(gap));
    });
  }
  for_each_lane([&](uint32_t& state, uint64_t at, uint32_t) {
    words.put_raw(state, codes.raw_gaps[at], kRawBits.of_gap[codes.gaps[at] % kSymbols]);
  });
  for_each_lane([&](uint32_t& state, uint64_t at, uint32_t i) {
    words.put(state, lanes->gap_slots[i][codes.gaps[at]]);
  });
}

template <class Nonzero>
Slice encode_slice(std::span<const Nonzero> sent, const Codes& codes, const Partition& p,
                   uint64_t first, const std::vector<Lane>& lanes, const FittedTables& fitted) {
  const auto n_lanes = static_cast<uint32_t>(std::min<uint64_t>(kLanesOfSlice, p.n_parts - first));
  LaneCodes own;
  own.n = n_lanes;
  uint64_t begins[kLanesOfSlice + 1];
  for (uint32_t i = 0; i < n_lanes; ++i) {
    const Lane& lane = lanes[first + i];
    const bool blocks = lane.block.size > 0;
    begins[i] = part_begin(p, first + i);
    own.state[i] = kLaneStart;
    own.shift[i] = lane.shift;
    own.gaps[i] = codes.gaps.data() + begins[i];
    own.raw_gaps[i] = codes.raw_gaps.data() + begins[i];
    own.levels[i] = codes.levels.data() + begins[i];
    own.raw_levels[i] = codes.raw_levels.data() + begins[i];
    own.gap_slots[i] = table_at(gap_family(part_of<Nonzero>, blocks), lane.gap_set, fitted)->slots;
    own.level_slots[i] =
        table_at(level_family(part_of<Nonzero>, blocks), lane.level_set, fitted)->slots;
  }
  begins[n_lanes] = part_begin(p, first + n_lanes);
  const uint64_t longest = begins[1] - begins[0];
  const uint64_t common = begins[n_lanes] - begins[n_lanes - 1];
  const uint8_t* const steps = codes.steps.data() + begins[0];
  WordWriter words(3 * (begins[n_lanes] - begins[0]));
  EncodeLanes* const vectors = vector_encoder(n_lanes);
  const auto plain = [&](uint64_t step) { return (steps[step] & ~kRawLevels) == 0; };
  for (uint64_t left = longest; left > 0;) {
    words.make_room();
    if (vectors != nullptr && left <= common && plain(left - 1)) {
      const uint64_t most = words.room() / (kMostWordsOfPlainNonzero * kLanesOfSlice);
      const uint64_t end = left;
      uint64_t begin = left - 1;
      while (begin > 0 && end - begin < most && plain(begin - 1)) --begin;
      words.go_on_below(vectors(&own, steps, begin, end, words.next()));
      left = begin;
      continue;
    }
    const uint64_t step = --left;
    uint32_t active = n_lanes;
    while (begins[active] - begins[active - 1] <= step) --active;
    encode_step(sent, codes, steps[step], begins, step, active, &own, words);
  }
  Slice slice(4 * n_lanes + 2 * words.size());
  for (uint32_t i = 0; i < n_lanes; ++i) store_le(slice.data() + 4 * i, own.state[i]);
  for (size_t i = 0; i < words.size(); ++i) {
    store_le(slice.data() + 4 * n_lanes + 2 * i, words.data()[i]);
  }
  return slice;
}

// The lanes of a slice.
template <class Visit>
void for_each_lane(const Partition& p, uint64_t slice, Visit visit) {
  const uint64_t first = slice * kLanesOfSlice;
  for (uint64_t l = first; l < std::min(p.n_parts, first + kLanesOfSlice); ++l) {
    visit(l, part_begin(p, l), part_begin(p, l + 1));
  }
}

// Begins all lanes and finds what they cost under the trained sets; returns how often each symbol
// occurs.
template <class Nonzero>
std::array<Counts, kFamilies> find_symbols(std::span<const Nonzero> sent,
                                           const MatrixShapes& matrices, const Partition& p,
                                           std::vector<Lane>* lanes, Codes* codes,
                                           std::vector<LaneCosts>* costs) {
  const TrainedTables& trained = trained_tables();
  std::vector<std::array<Counts, kFamilies>> counts(slices_of(p.n_parts));
  parallel_for(
      counts.size(),
      [&](size_t slice) {
        for (Counts& of_family : counts[slice]) of_family.assign(kMostRows * kSymbols, 0);
        for_each_lane(p, slice, [&](uint64_t l, uint64_t begin, uint64_t end) {
          const uint64_t n = end - begin;
          uint8_t* const steps = codes->steps.data() + part_begin(p, slice * kLanesOfSlice);
          (*lanes)[l] = begin_lane(sent, matrices, begin, end, steps, codes);
          const bool blocks = (*lanes)[l].block.size > 0;
          const Family gaps = gap_family(part_of<Nonzero>, blocks),
                       levels = level_family(part_of<Nonzero>, blocks);
          find_costs(codes->gaps.data() + begin, n, trained.costs[gaps], &(*costs)[l].gaps,
                     counts[slice][gaps].data());
          find_costs(codes->levels.data() + begin, n, trained.costs[levels], &(*costs)[l].levels,
                     counts[slice][levels].data());
        });
      },
      1);
  for (size_t slice = 1; slice < counts.size(); ++slice) {
    for (uint32_t f = 0; f < kFamilies; ++f) {
      for (size_t i = 0; i < counts[0][f].size(); ++i) counts[0][f][i] += counts[slice][f][i];
    }
  }
  return std::move(counts[0]);
}

// Costs of all lanes under the fitted sets.
template <class Nonzero>
void find_fitted_costs(const Codes& codes, const Partition& p, const std::vector<Lane>& lanes,
                       const FittedTables& fitted, std::vector<LaneCosts>* costs) {
  parallel_for(
      slices_of(p.n_parts),
      [&](size_t slice) {
        for_each_lane(p, slice, [&](uint64_t l, uint64_t begin, uint64_t end) {
          const bool blocks = lanes[l].block.size > 0;
          const uint64_t n = end - begin;
          if (const Table* const gaps = fitted[gap_family(part_of<Nonzero>, blocks)].get()) {
            (*costs)[l].gaps[kFittedSet] = cost_under(*gaps, codes.gaps.data() + begin, n);
          }
          if (const Table* const levels = fitted[level_family(part_of<Nonzero>, blocks)].get()) {
            (*costs)[l].levels[kFittedSet] = cost_under(*levels, codes.levels.data() + begin, n);
          }
        });
      },
      1);
}

// Nonzeros in coding order, given what goes before fitted sets and lanes in their tables.
template <class Nonzero>
std::optional<CodedLanes> encode_lanes(std::span<const Nonzero> sent, const MatrixShapes& matrices,
                                       unsigned lane_log2, uint64_t max_bytes, BitWriter tables) {
  CodedLanes coded;
  const Partition p = partition(sent.size(), lane_log2);
  std::vector<Lane> lanes(p.n_parts);
  std::vector<LaneCosts> costs(p.n_parts);
  Codes codes(sent.size());
  const auto counts = find_symbols(sent, matrices, p, &lanes, &codes, &costs);
  FittedTables fitted;
  fit_tables(part_of<Nonzero>, counts, &fitted, &tables);
  find_fitted_costs<Nonzero>(codes, p, lanes, fitted, &costs);
  choose_sets(part_of<Nonzero>, costs, fitted, &lanes, &tables);
  coded.tables = tables.finish();

  coded.slices.resize(slices_of(p.n_parts));
  std::atomic<uint64_t> n_bytes{coded.tables.size()};
  parallel_for(
      coded.slices.size(),
      [&](size_t slice) {
        if (n_bytes.load(std::memory_order_relaxed) > max_bytes) return;
        coded.slices[slice] = encode_slice(sent, codes, p, slice * kLanesOfSlice, lanes, fitted);
        n_bytes.fetch_add(coded.slices[slice].size(), std::memory_order_relaxed);
      },
      1);
  if (n_bytes > max_bytes) return std::nullopt;
  return coded;
}

template <class Nonzero>
std::vector<TracedLane> trace_lanes(std::span<const Nonzero> sent, const MatrixShapes& matrices,
                                    unsigned lane_log2) {
  const Partition p = partition(sent.size(), lane_log2);
  Codes codes(sent.size());
  std::vector<TracedLane> lanes(p.n_parts);
  for (uint64_t l = 0; l < p.n_parts; ++l) {
    const uint64_t begin = part_begin(p, l), end = part_begin(p, l + 1);
    uint8_t* const steps = codes.steps.data() + begin;
    lanes[l].blocks = begin_lane(sent, matrices, begin, end, steps, &codes).block.size > 0;
    lanes[l].gaps.assign(codes.gaps.data() + begin, codes.gaps.data() + end);
    lanes[l].levels.assign(codes.levels.data() + begin, codes.levels.data() + end);
  }
  return lanes;
}

}  // namespace

std::optional<CodedLanes> encode_nonzeros(const SentSymbols (&lists)[3], const MatrixShapes& shapes,
                                          unsigned lane_log2, uint64_t max_bytes) {
  Scratch<SentSymbol> symbols;
  for (const SentSymbols list : lists) symbols.insert(symbols.end(), list.begin(), list.end());
  if (symbols.empty()) return CodedLanes{};
  BitWriter tables;
  MatrixShapes matrices = shapes;
  scan(symbols, &matrices, &tables);
  return encode_lanes(SentSymbols(symbols), matrices, lane_log2, max_bytes, std::move(tables));
}

CodedLanes encode_changes(std::span<const ChangedElement> changes, unsigned lane_log2) {
  if (changes.empty()) return {};
  return *encode_lanes(changes, {}, lane_log2, ~uint64_t{0}, {});
}

std::vector<TracedLane> trace_nonzeros(SentSymbols sent, const MatrixShapes& shapes,
                                       unsigned lane_log2) {
  Scratch<SentSymbol> symbols(sent.begin(), sent.end());
  BitWriter unused;
  MatrixShapes matrices = shapes;
  scan(symbols, &matrices, &unused);
  return trace_lanes(SentSymbols(symbols), matrices, lane_log2);
}

std::vector<TracedLane> trace_changes(std::span<const ChangedElement> changes, unsigned lane_log2) {
  return trace_lanes(changes, {}, lane_log2);
}

}  // namespace resfed

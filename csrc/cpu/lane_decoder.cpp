#include <algorithm>
#include <array>
#include <bit>

#include "cpu/lane_kernels.hpp"
#include "cpu/threads.hpp"

namespace resfed {
namespace {

// The words of a slice with zeros behind them, so that a step may read too far, and a vector unit
// sixteen words at once: who calls checks beyond_end() after each.
constexpr size_t kWordsBehind = kLanesOfSlice * kMostWordsOfNonzero + 16;
class WordReader {
 public:
  WordReader(const uint8_t* words, size_t n_words)
      : words_(n_words + kWordsBehind, 0), n_words_(n_words) {
    for (size_t i = 0; i < n_words; ++i) words_[i] = load_le<uint16_t>(words + 2 * i);
    next_ = words_.data();
  }

  uint32_t refilled(uint32_t state) {
    const bool full = state >= kLaneStart;
    const uint32_t with_word = state << 16 | *next_;
    next_ += full ? 0 : 1;
    return full ? state : with_word;
  }
  uint32_t take_raw(uint32_t& state, unsigned n_bits) {
    const uint32_t value = state & ((1u << n_bits) - 1);
    state = refilled(state >> n_bits);
    return value;
  }
  // n_bits more of a value.
  uint64_t take_pieces(uint32_t& state, uint64_t value, unsigned n_bits) {
    for (unsigned left = n_bits; left > 0;) {
      const unsigned n = std::min(kPieceBits, left);
      value = value << n | take_raw(state, n);
      left -= n;
    }
    return value;
  }
  const uint16_t* next() const { return next_; }
  const uint16_t* end() const { return words_.data() + n_words_; }
  void go_on_from(const uint16_t* next) { next_ = next; }
  bool beyond_end() const { return next_ > words_.data() + n_words_; }
  bool at_end() const { return next_ == words_.data() + n_words_; }

 private:
  Scratch<uint16_t> words_;
  size_t n_words_;
  const uint16_t* next_;
};

// The symbol that owns a slot: the last one minus how many of the row's symbols start after it.
uint32_t symbol_at(const uint16_t (&starts)[kSymbols], uint32_t slot) {
  using Eight = int16_t __attribute__((vector_size(16)));
  const auto* const parts = reinterpret_cast<const Eight*>(starts);
  const Eight slots = Eight{} + static_cast<int16_t>(slot);
  // Minus the number of symbols after it, in eight parts.
  const Eight after =
      (parts[0] > slots) + (parts[1] > slots) + (parts[2] > slots) + (parts[3] > slots);
  const auto sums = std::bit_cast<std::array<uint64_t, 2>>(after + int16_t{4});  // 0 to 4 each
  return static_cast<uint32_t>((sums[0] + sums[1]) * 0x0001000100010001u >> 48) - 1;
}

// Of a gap symbol or a level symbol.
struct SymbolClasses {
  uint32_t first[kSymbols] = {};
  uint8_t n_bits[kSymbols] = {};
  uint8_t log2[kSymbols] = {};  // of all values of the class
};
constexpr SymbolClasses kGapClasses = [] {
  SymbolClasses classes;
  for (uint32_t s = 0; s < kGapEscape; ++s) {
    const ValueClass c = gap_class(s);
    classes.first[s] = c.first;
    classes.n_bits[s] = static_cast<uint8_t>(c.n_bits);
    while (c.first >> classes.log2[s] > 1) ++classes.log2[s];
  }
  classes.n_bits[kGapEscape] = kExponentBits;
  classes.log2[kGapEscape] = 15;  // as contexts see it
  return classes;
}();

template <bool kBlocks, class Nonzero>
struct DecodingLane {
  uint32_t state;
  unsigned shift;   // of levels
  uint32_t symbol;  // of the gap, then of the level
  decltype(contexts_of<kBlocks, Nonzero>({})) contexts;
  uint64_t sign = 0;     // 0: positive, all bits set: negative
  uint64_t covered = 0;  // index + 1 of the last nonzero, relative to the lane before
  uint64_t value;        // of the gap, then of the level
  const Table* gaps;
  const Table* levels;
  Nonzero* out;     // of the next nonzero
  uint64_t length;  // nonzeros

  void take(WordReader& words, const Table& table, uint32_t row) {
    symbol = symbol_at(table.starts[row], state & (kFrequencyOne - 1));
    state = words.refilled(without_symbol(state, table.slots[row * kSymbols + symbol]));
  }
};

// The raw bits of levels.
template <bool kBlocks, class Nonzero>
bool decode_raw_levels(std::span<DecodingLane<kBlocks, Nonzero>> lanes, WordReader& words) {
  for (auto& lane : lanes) {
    const unsigned n_bits = std::min(level_raw_bits(lane.symbol, lane.shift), kPieceBits);
    if (n_bits > 0) lane.value = words.take_raw(lane.state, n_bits);
  }
  for (auto& lane : lanes) {
    const unsigned n_bits = level_raw_bits(lane.symbol, lane.shift);
    if (lane.symbol == kLevelEscape) {
      if (lane.value > floor_log2(kMostLevel<Nonzero>)) return false;
      lane.value = words.take_pieces(lane.state, 1, static_cast<unsigned>(lane.value));
    } else if (n_bits > 0) {
      if (n_bits > kPieceBits)
        lane.value = words.take_pieces(lane.state, lane.value, n_bits - kPieceBits);
      lane.value += first_level(lane.symbol, lane.shift);
    }
    // Values have one symbol each.
    if (lane.value == 0 || lane.value > kMostLevel<Nonzero> ||
        level_symbol(lane.value, lane.shift) != lane.symbol)
      return false;
    if (lane.sign == 0 && lane.value >> 63 != 0) return false;  // 2^63 is legal as -2^63 alone
  }
  return true;
}

// Decodes a slice; returns false where it is damaged. Each loop over the lanes reads the words of
// one part of a nonzero.
template <bool kBlocks, class Nonzero>
bool decode_steps(std::span<DecodingLane<kBlocks, Nonzero>> lanes, WordReader& words,
                  uint64_t n_elems, uint64_t first_step) {
  using Lane = DecodingLane<kBlocks, Nonzero>;
  for (uint64_t step = first_step; step < lanes[0].length; ++step) {
    size_t active = lanes.size();
    while (lanes[active - 1].length <= step) --active;
    const auto now = lanes.first(active);
    for (Lane& lane : now) lane.take(words, *lane.gaps, lane.contexts.gap_row());
    bool any_escape = false;
    for (Lane& lane : now) {
      lane.value = kGapClasses.first[lane.symbol] +
                   uint64_t{words.take_raw(lane.state, kGapClasses.n_bits[lane.symbol])};
      any_escape |= lane.symbol == kGapEscape;
    }
    if (any_escape) {
      for (Lane& lane : now) {
        if (lane.symbol != kGapEscape) continue;
        if (lane.value < kEscapedGapLog2 || lane.value > kMostGapLog2) return false;
        lane.value = words.take_pieces(lane.state, 1, static_cast<unsigned>(lane.value));
      }
    }
    bool any_raw = false, outside = false;
    for (Lane& lane : now) {
      outside |= lane.value > n_elems - lane.covered;
      lane.covered += lane.value;
      lane.contexts.add_gap(lane.value, kGapClasses.log2[lane.symbol]);
      lane.take(words, *lane.levels, lane.contexts.level_row());
      lane.contexts.add_level(lane.symbol);
      lane.sign ^= lane.symbol >= kSignChanged ? ~uint64_t{0} : 0;
      lane.symbol %= kSignChanged;
      lane.value = lane.symbol + 1;
      any_raw |= lane.symbol >= 8 || lane.shift > 0;
    }
    if (outside) return false;
    if (any_raw && !decode_raw_levels(now, words)) return false;
    for (Lane& lane : now) {
      using Level = decltype(lane.out->level());
      *lane.out++ = {lane.covered - 1, static_cast<Level>((lane.value ^ lane.sign) - lane.sign)};
    }
    if (words.beyond_end()) return false;
  }
  const auto ended = [](const Lane& lane) { return lane.state == kLaneStart; };
  return words.at_end() && std::all_of(lanes.begin(), lanes.end(), ended);
}

// Decodes what all lanes have with a vector unit; false where that is damaged.
template <bool kBlocks>
bool decode_together(DecodeLanes* decode, std::span<DecodingLane<kBlocks, SentSymbol>> lanes,
                     uint64_t n_steps, uint64_t n_elems, WordReader& words) {
  LaneArrays arrays;
  arrays.n = lanes.size();
  for (size_t i = 0; i < lanes.size(); ++i) {
    const DecodingLane<kBlocks, SentSymbol>& lane = lanes[i];
    const LaneContexts<kBlocks>& c = lane.contexts;
    arrays.state[i] = lane.state;
    arrays.shift[i] = lane.shift;
    arrays.activity[i] = c.activity;
    arrays.gap_log2[i] = c.gap_log2;
    arrays.level[i] = c.level;
    arrays.changes[i] = c.changes;
    arrays.sign[i] = static_cast<uint32_t>(lane.sign);
    arrays.block_size[i] = c.block.size;
    arrays.first_left[i] = c.block.size > 0 ? left_in_block(c.block) : 0;
    arrays.left[i] = c.left;
    arrays.crossed[i] = c.crossed ? 1 : 0;
    arrays.whole[i] = c.whole ? 1 : 0;
    arrays.covered[i] = lane.covered;
    arrays.out[i] = lane.out;
    arrays.gaps[i] = lane.gaps;
    arrays.levels[i] = lane.levels;
  }
  const uint16_t* const next = decode(&arrays, n_steps, n_elems, words.next(), words.end());
  if (next == nullptr) return false;
  words.go_on_from(next);
  for (size_t i = 0; i < lanes.size(); ++i) {
    DecodingLane<kBlocks, SentSymbol>& lane = lanes[i];
    lane.state = arrays.state[i];
    lane.contexts.activity = arrays.activity[i];
    lane.contexts.gap_log2 = arrays.gap_log2[i];
    lane.contexts.level = arrays.level[i];
    lane.contexts.changes = arrays.changes[i];
    lane.contexts.left = arrays.left[i];
    lane.contexts.crossed = arrays.crossed[i] != 0;
    lane.contexts.whole = arrays.whole[i] != 0;
    lane.sign = arrays.sign[i] == 0 ? 0 : ~uint64_t{0};
    lane.covered = arrays.covered[i];
    lane.out = arrays.out[i];
  }
  return true;
}

template <bool kBlocks, class Nonzero>
bool decode_slice(const uint8_t* slice, uint64_t n_bytes, const Partition& p, uint64_t first,
                  std::span<const Lane> lanes, const FittedTables& fitted, uint64_t n_elems,
                  Nonzero* nonzeros, uint64_t* covered) {
  const size_t n_lanes = lanes.size();
  if (n_bytes < 4 * n_lanes || n_bytes % 2 != 0) return false;
  DecodingLane<kBlocks, Nonzero> decoding[kLanesOfSlice];
  for (size_t i = 0; i < n_lanes; ++i) {
    const Lane& lane = lanes[i];
    const bool blocks = lane.block.size > 0;
    DecodingLane<kBlocks, Nonzero>& d = decoding[i];
    d.state = load_le<uint32_t>(slice + 4 * i);
    if (d.state < kLaneStart) return false;
    d.gaps = table_at(gap_family(part_of<Nonzero>, blocks), lane.gap_set, fitted);
    d.levels = table_at(level_family(part_of<Nonzero>, blocks), lane.level_set, fitted);
    d.contexts = contexts_of<kBlocks, Nonzero>(lane.block);
    d.shift = lane.shift;
    d.out = nonzeros + part_begin(p, first + i);
    d.length = part_begin(p, first + i + 1) - part_begin(p, first + i);
  }
  WordReader words(slice + 4 * n_lanes, n_bytes / 2 - 2 * n_lanes);
  const std::span all(decoding, n_lanes);
  uint64_t n_together = 0;
  if constexpr (std::is_same_v<Nonzero, SentSymbol>) {
    DecodeLanes* const decode = vector_decoder(n_lanes);
    const auto large = [](const Lane& lane) { return lane.shift > kMostVectorShift; };
    if (decode != nullptr && std::none_of(lanes.begin(), lanes.end(), large)) {
      n_together = decoding[n_lanes - 1].length;
      if (!decode_together(decode, all, n_together, n_elems, words)) return false;
    }
  }
  if (!decode_steps(all, words, n_elems, n_together)) return false;
  for (size_t i = 0; i < n_lanes; ++i) covered[i] = decoding[i].covered;
  return true;
}

// From the slice with the number `first` on; fitted sets and lanes are what is left of the tables.
template <class Nonzero>
void decode_lanes(const uint8_t* payload, const Frame& frame, uint64_t first, const Partition& p,
                  uint64_t n_elems, BitReader& in, std::span<Nonzero> nonzeros) {
  FittedTables fitted;
  const std::vector<Lane> lanes = read_tables(part_of<Nonzero>, in, p.n_parts, &fitted);
  const uint64_t n_slices = slices_of(p.n_parts);
  std::vector<uint64_t> offsets(n_slices + 1, frame.slices_offset), ends(p.n_parts + 1, 0);
  for (uint64_t s = 0; s < first; ++s) offsets[0] += frame.slice_bytes[s];
  for (uint64_t s = 0; s < n_slices; ++s) {
    offsets[s + 1] = offsets[s] + frame.slice_bytes[first + s];
  }
  parallel_for(
      n_slices,
      [&](size_t s) {
        const auto here = std::span(lanes).subspan(s * kLanesOfSlice);
        const auto own = here.first(std::min<size_t>(here.size(), kLanesOfSlice));
        const bool any_blocks = std::any_of(own.begin(), own.end(),
                                            [](const Lane& lane) { return lane.block.size > 0; });
        const auto decode = any_blocks ? decode_slice<true, Nonzero> : decode_slice<false, Nonzero>;
        if (!decode(payload + offsets[s], offsets[s + 1] - offsets[s], p, s * kLanesOfSlice, own,
                    fitted, n_elems, nonzeros.data(), ends.data() + s * kLanesOfSlice + 1)) {
          throw Failure{Code::kBadSlice, first + s};
        }
      },
      1);
  for (uint64_t l = 0; l < p.n_parts; ++l) {  // where each lane begins
    if (ends[l + 1] > n_elems - ends[l]) {
      throw Failure{Code::kBadSlice, first + l / kLanesOfSlice};
    }
    ends[l + 1] += ends[l];
  }
  parallel_for(
      p.n_parts,
      [&](size_t l) {
        for (uint64_t i = part_begin(p, l); i < part_begin(p, l + 1); ++i) {
          nonzeros[i].move_up(ends[l]);
        }
      },
      2 * kLanesOfSlice);
}

}  // namespace

void decode_nonzeros(const uint8_t* payload, const Frame& frame, const MatrixShapes& matrices,
                     Scratch<SentSymbol>* symbols) {
  symbols->resize(frame.n_nonzeros());
  if (frame.n_nonzeros() == 0) return;
  BitReader in(frame.tables.data(), frame.tables.size());
  const std::vector<MatrixScan> scans = read_scans(in, matrices);
  decode_lanes(payload, frame, 0, frame.lanes(), frame.n_lossy(), in,
               std::span<SentSymbol>(*symbols));
  if (!undo_scans(*symbols, matrices, scans)) throw Failure{Code::kBadSlice, 0};
}

std::vector<ChangedElement> decode_changes(const uint8_t* payload, const Frame& frame) {
  std::vector<ChangedElement> changes(frame.n_changed);
  if (frame.n_changed == 0) return changes;
  BitReader in(frame.change_tables.data(), frame.change_tables.size());
  decode_lanes(payload, frame, frame.n_lossy_slices(), frame.lanes_of_changes(), frame.n_lossless,
               in, std::span(changes));
  return changes;
}

}  // namespace resfed

#include <algorithm>

#include "cpu/lanes.hpp"
#include "cpu/threads.hpp"

namespace resfed {
namespace {

class WordReader {
 public:
  WordReader(const uint8_t* words, size_t n_words) : next_(words), end_(words + 2 * n_words) {}

  void refill(uint32_t& state) {
    if (state >= kLaneStart) return;
    if (next_ == end_) {
      underrun_ = true;
      state = kLaneStart;
      return;
    }
    state = state << 16 | load_le<uint16_t>(next_);
    next_ += 2;
  }
  uint32_t take(uint32_t& state, const uint16_t* starts, const Slots* slots) {
    const uint32_t slot = state & (kFrequencyOne - 1);
    uint32_t symbol = 0;
    for (uint32_t s = 1; s < kSymbols; ++s) symbol += starts[s] <= slot ? 1 : 0;
    state = without_symbol(state, slots[symbol]);
    refill(state);
    return symbol;
  }
  uint32_t take_raw(uint32_t& state, unsigned n_bits) {
    const uint32_t value = state & ((1u << n_bits) - 1);
    state >>= n_bits;
    refill(state);
    return value;
  }
  uint64_t take_mantissa(uint32_t& state, unsigned n_bits) {
    uint64_t value = 1;
    for (unsigned left = n_bits; left > 0;) {
      const unsigned n = std::min(kPieceBits, left);
      value = value << n | take_raw(state, n);
      left -= n;
    }
    return value;
  }
  bool finished() const { return !underrun_ && next_ == end_; }
  bool underrun() const { return underrun_; }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
  bool underrun_ = false;
};

template <bool kBlocks>
struct DecodingLane {
  uint32_t state;
  const Table* gaps;
  const Table* levels;
  LaneContexts<kBlocks> contexts;
  SentSymbol* out;       // of the next nonzero
  uint64_t length;       // nonzeros
  uint64_t covered = 0;  // index + 1 of the last nonzero, relative to the lane before
  uint64_t gap = 0;      // of the current nonzero
  uint32_t symbol = 0;   // of its gap or level
  bool positive = true;
};

// Decodes a slice; returns false where it is damaged.
template <bool kBlocks>
bool decode_lanes(std::span<DecodingLane<kBlocks>> lanes, WordReader& words, uint64_t n_elems) {
  for (uint64_t step = 0; step < lanes[0].length; ++step) {
    size_t active = lanes.size();
    while (lanes[active - 1].length <= step) --active;
    const auto now = lanes.first(active);
    bool escaped = false;
    for (auto& lane : now) {
      const uint32_t row = lane.contexts.gap_row();
      lane.symbol =
          words.take(lane.state, lane.gaps->starts[row], lane.gaps->slots + row * kSymbols);
    }
    for (auto& lane : now) {
      if (lane.symbol == kGapEscape) {
        lane.gap = words.take_raw(lane.state, kGapExponentBits);
        escaped = true;
      } else {
        const ValueClass c = gap_class(lane.symbol);
        lane.gap = c.first + words.take_raw(lane.state, c.n_bits);
      }
    }
    for (auto& lane : now) {
      if (escaped && lane.symbol == kGapEscape) {
        const auto log2 = static_cast<unsigned>(lane.gap);
        if (log2 < kEscapedGapLog2 || log2 > kMostGapLog2) return false;
        lane.gap = words.take_mantissa(lane.state, log2);
      }
      if (lane.gap > n_elems - lane.covered) return false;
      lane.covered += lane.gap;
      lane.contexts.add_gap(lane.gap, floor_log2(lane.gap));
    }
    bool raw = false;
    for (auto& lane : now) {
      const uint32_t row = lane.contexts.level_row();
      lane.symbol =
          words.take(lane.state, lane.levels->starts[row], lane.levels->slots + row * kSymbols);
      lane.contexts.add_level(lane.symbol);
      lane.positive = lane.positive != (lane.symbol >= kSignChanged);
      lane.symbol %= kSignChanged;
      lane.gap = lane.symbol + 1;  // from here on, the level
      raw |= lane.symbol >= 8;
    }
    if (raw) {
      for (auto& lane : now) {
        if (lane.symbol == kLevelEscape) {
          lane.gap = words.take_raw(lane.state, kLevelExponentBits);
        } else if (lane.symbol >= 8) {
          const ValueClass c = level_class(lane.symbol);
          lane.gap = c.first + words.take_raw(lane.state, c.n_bits);
          if (lane.gap == 8) return false;  // it has a symbol of its own
        }
      }
      for (auto& lane : now) {
        if (lane.symbol != kLevelEscape) continue;
        const auto log2 = static_cast<unsigned>(lane.gap);
        if (log2 < kEscapedLevelLog2 || log2 > kMostLevelLog2) return false;
        lane.gap = words.take_mantissa(lane.state, log2);
        if (lane.gap < kEscapedLevel || lane.gap > kMaxLevel) return false;
      }
    }
    for (auto& lane : now) {
      const auto level = static_cast<int32_t>(lane.gap);
      *lane.out++ = {lane.covered - 1, lane.positive ? level : -level};
    }
    if (words.underrun()) return false;
  }
  for (const auto& lane : lanes) {
    if (lane.state != kLaneStart) return false;
  }
  return words.finished();
}

template <bool kBlocks>
bool decode_slice(const uint8_t* slice, uint64_t n_bytes, const Partition& p, uint64_t first,
                  std::span<const Lane> lanes, const FittedTables& fitted, uint64_t n_elems,
                  SentSymbol* symbols, uint64_t* covered) {
  const size_t n_lanes = lanes.size();
  if (n_bytes < 4 * n_lanes || n_bytes % 2 != 0) return false;
  DecodingLane<kBlocks> decoding[kLanesOfSlice];
  for (size_t i = 0; i < n_lanes; ++i) {
    const Lane& lane = lanes[i];
    const bool blocks = lane.block.size > 0;
    DecodingLane<kBlocks>& d = decoding[i];
    d.state = load_le<uint32_t>(slice + 4 * i);
    if (d.state < kLaneStart) return false;
    d.gaps = table_at(gap_family(blocks), lane.gap_set, fitted);
    d.levels = table_at(level_family(blocks), lane.level_set, fitted);
    d.contexts.block = lane.block;
    d.out = symbols + part_begin(p, first + i);
    d.length = part_begin(p, first + i + 1) - part_begin(p, first + i);
  }
  WordReader words(slice + 4 * n_lanes, n_bytes / 2 - 2 * n_lanes);
  if (!decode_lanes(std::span(decoding, n_lanes), words, n_elems)) return false;
  for (size_t i = 0; i < n_lanes; ++i) covered[i] = decoding[i].covered;
  return true;
}

}  // namespace

void decode_nonzeros(const uint8_t* payload, const Frame& frame, const MatrixShapes& matrices,
                     Scratch<SentSymbol>* symbols) {
  symbols->resize(frame.n_nonzeros());
  if (frame.n_nonzeros() == 0) return;
  const Partition p = frame.lanes();
  const uint64_t n_elems = frame.n_lossy();
  BitReader in(frame.tables.data(), frame.tables.size());
  const std::vector<MatrixScan> scans = read_scans(in, matrices);
  FittedTables fitted;
  const std::vector<Lane> lanes = read_tables(in, p.n_parts, &fitted);

  const uint64_t n_slices = slices_of(p.n_parts);
  std::vector<uint64_t> offsets(n_slices + 1, frame.slices_offset), ends(p.n_parts + 1, 0);
  for (uint64_t s = 0; s < n_slices; ++s) offsets[s + 1] = offsets[s] + frame.slice_bytes[s];
  parallel_for(
      n_slices,
      [&](size_t s) {
        const auto here = std::span(lanes).subspan(s * kLanesOfSlice);
        const std::span<const Lane> own = here.first(std::min<size_t>(here.size(), kLanesOfSlice));
        const bool any_blocks = std::any_of(own.begin(), own.end(),
                                            [](const Lane& lane) { return lane.block.size > 0; });
        const auto decode = any_blocks ? decode_slice<true> : decode_slice<false>;
        if (!decode(payload + offsets[s], frame.slice_bytes[s], p, s * kLanesOfSlice, own, fitted,
                    n_elems, symbols->data(), ends.data() + s * kLanesOfSlice + 1)) {
          throw Failure{Code::kBadSlice, s};
        }
      },
      1);
  for (uint64_t l = 0; l < p.n_parts; ++l) {  // where each lane begins
    if (ends[l + 1] > n_elems - ends[l]) throw Failure{Code::kBadSlice, l / kLanesOfSlice};
    ends[l + 1] += ends[l];
  }
  parallel_for(
      p.n_parts,
      [&](size_t l) {
        for (uint64_t i = part_begin(p, l); i < part_begin(p, l + 1); ++i) {
          (*symbols)[i].move_up(ends[l]);
        }
      },
      2 * kLanesOfSlice);
  if (!undo_scans(*symbols, matrices, scans)) throw Failure{Code::kBadSlice, 0};
}

}  // namespace resfed

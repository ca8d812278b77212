// Stage 4 on the device, decoding: a warp decodes a slice, each of its threads a lane.
#include "cuda/pipeline.cuh"
#include "entropy/interleaved_rans.hpp"

namespace resfed::cuda {
namespace {

constexpr unsigned kScanThreads = 1024;
constexpr unsigned kThreads = 128;
static_assert(kLanesOfSlice == kWarp);

// The words of a slice with zeros behind them: who calls checks beyond_end() after each step. All
// functions are called by the whole warp.
class WordReader {
 public:
  __device__ WordReader(const uint16_t* words, uint64_t n) : words_(words), n_(n) {}

  // Lanes whose state is short take the next words, in the order of the lanes.
  __device__ uint32_t refilled(uint32_t state) {
    const unsigned takers = __ballot_sync(kAllLanes, state < kLaneStart);
    if ((takers >> lane_of_thread() & 1u) != 0) {
      state = with_word(state, at_ + static_cast<unsigned>(__popc(takers & lanes_below())));
    }
    at_ += static_cast<unsigned>(__popc(takers));
    return state;
  }
  __device__ uint32_t take_raw(uint32_t& state, unsigned n_bits) {
    const uint32_t value = state & ((1u << n_bits) - 1);
    state = refilled(state >> n_bits);
    return value;
  }
  // Of the lanes that are `escaped`, one after the other, numbers of `n_bits` and a leading one.
  __device__ uint64_t take_mantissas(uint32_t& state, bool escaped, unsigned n_bits) {
    uint64_t value = 1;
    for (unsigned left = __ballot_sync(kAllLanes, escaped); left != 0; left &= left - 1) {
      const unsigned lane = static_cast<unsigned>(__popc((left & (0u - left)) - 1));
      if (lane == lane_of_thread()) {
        for (unsigned bits = n_bits; bits > 0;) {
          const unsigned n = min_of(kPieceBits, bits);
          value = value << n | (state & ((1u << n) - 1));
          state >>= n;
          if (state < kLaneStart) state = with_word(state, at_++);
          bits -= n;
        }
      }
      at_ = __shfl_sync(kAllLanes, at_, static_cast<int>(lane));
    }
    return value;
  }
  __device__ bool beyond_end() const { return at_ > n_; }
  __device__ bool at_end() const { return at_ == n_; }

 private:
  __device__ uint32_t with_word(uint32_t state, uint64_t at) const {
    return state << 16 | (at < n_ ? words_[at] : 0u);
  }
  const uint16_t* words_;
  uint64_t n_, at_ = 0;
};

// Takes a symbol off the state, which is not refilled. Eight symbols' starts are loaded together:
// first every eighth one, then those between.
__device__ uint32_t take_symbol(uint32_t& state, const uint16_t (&starts)[kSymbols]) {
  struct alignas(16) Eight {
    uint16_t of[8];
  };
  const uint32_t slot = state & (kFrequencyOne - 1);
  uint32_t symbol = 0, end = kFrequencyOne;  // of the eight, then of the symbol
  RESFED_UNROLL
  for (uint32_t s = kSymbols - 8; s > 0; s -= 8) {
    const uint32_t start = starts[s];
    if (start > slot) end = start;
    symbol += start <= slot ? 8 : 0;
  }
  const Eight eight = *reinterpret_cast<const Eight*>(&starts[symbol]);
  uint32_t start = eight.of[0], below = 0;
  RESFED_UNROLL
  for (uint32_t s = 1; s < 8; ++s) {
    if (eight.of[s] <= slot) start = eight.of[s], ++below;
  }
  RESFED_UNROLL
  for (uint32_t s = 7; s > 0; --s) {
    if (eight.of[s] > slot) end = eight.of[s];
  }
  state = without_symbol(state, {static_cast<uint16_t>(start), static_cast<uint16_t>(end - start)});
  return symbol + below;
}

// The lane of this thread, in a slice of a warp. Lanes that have ended take part with a state that
// is never short.
template <bool kBlocks>
__device__ bool decode_lanes(uint32_t state, Block block, const TableStarts& gaps,
                             const TableStarts& levels, WordReader& words, uint64_t length,
                             uint64_t longest, uint64_t n_elems, SentSymbol* out,
                             uint64_t* covered_by_lane) {
  LaneContexts<kBlocks> contexts;
  contexts.block = block;
  bool negative = false;
  uint64_t covered = 0;
  for (uint64_t step = 0; step < longest; ++step) {
    const bool active = step < length;
    uint32_t symbol = active ? take_symbol(state, gaps.of[contexts.gap_row()]) : 0;
    state = words.refilled(state);
    bool escaped = symbol == kGapEscape;
    const ValueClass gap_values = escaped ? ValueClass{0, kGapExponentBits} : gap_class(symbol);
    uint64_t gap = gap_values.first + words.take_raw(state, gap_values.n_bits);
    if (__ballot_sync(kAllLanes, escaped) != 0) {
      const bool bad = escaped && (gap < kEscapedGapLog2 || gap > kMostGapLog2);
      if (__ballot_sync(kAllLanes, bad) != 0) return false;
      const uint64_t value = words.take_mantissas(state, escaped, static_cast<unsigned>(gap));
      if (escaped) gap = value;
    }
    if (__ballot_sync(kAllLanes, active && gap > n_elems - covered) != 0) return false;

    uint32_t level = 0;
    if (active) {
      covered += gap;
      contexts.add_gap(gap, floor_log2(gap));
      symbol = take_symbol(state, levels.of[contexts.level_row()]);
      contexts.add_level(symbol);
      negative = negative != (symbol >= kSignChanged);
      symbol %= kSignChanged;
      level = symbol + 1;
    }
    state = words.refilled(state);
    const bool large = level > 8;
    if (__ballot_sync(kAllLanes, large) != 0) {
      escaped = large && symbol == kLevelEscape;
      const ValueClass values = !large    ? ValueClass{level, 0}
                                : escaped ? ValueClass{0, kLevelExponentBits}
                                          : level_class(symbol);
      level = values.first + words.take_raw(state, values.n_bits);
      bool bad = large && level == 8;  // it has a symbol of its own
      if (escaped) bad = level < kEscapedLevelLog2 || level > kMostLevelLog2;
      if (__ballot_sync(kAllLanes, bad) != 0) return false;
      if (__ballot_sync(kAllLanes, escaped) != 0) {
        const auto value = static_cast<uint32_t>(words.take_mantissas(state, escaped, level));
        if (escaped) level = value;
        bad = escaped && (level < kEscapedLevel || level > kMaxLevel);
        if (__ballot_sync(kAllLanes, bad) != 0) return false;
      }
    }
    if (active) {
      const auto magnitude = static_cast<int32_t>(level);
      out[step] = {covered - 1, negative ? -magnitude : magnitude};
    }
    if (words.beyond_end()) return false;
  }
  if (length > 0) *covered_by_lane = covered;
  return words.at_end() && __ballot_sync(kAllLanes, state != kLaneStart) == 0;
}

// Indices relative to the end of the lane before.
__device__ bool decode_slice(const uint16_t* slice, uint64_t n_bytes, const LaneTables& lanes,
                             uint64_t first, uint64_t n_elems, SentSymbol* symbols,
                             uint64_t* covered) {
  const Partition& p = lanes.partition;
  const uint64_t n_lanes = min_of<uint64_t>(p.n_parts - first, kLanesOfSlice);
  if (n_bytes < 4 * n_lanes || n_bytes % 2 != 0) return false;
  const bool there = lane_of_thread() < n_lanes;
  const uint64_t l = first + (there ? lane_of_thread() : 0);
  const Lane lane = lanes.of[l];
  uint32_t state = kLaneStart;
  if (there) {
    state = slice[2 * lane_of_thread()] | static_cast<uint32_t>(slice[2 * lane_of_thread() + 1])
                                              << 16;
  }
  if (__ballot_sync(kAllLanes, state < kLaneStart) != 0) return false;
  const bool blocks = lane.block.size > 0;
  const TableStarts& gaps = lanes.tables.at(gap_family(blocks), lane.gap_set);
  const TableStarts& levels = lanes.tables.at(level_family(blocks), lane.level_set);
  WordReader words(slice + 2 * n_lanes, n_bytes / 2 - 2 * n_lanes);
  const uint64_t begin = part_begin(p, l), length = there ? part_begin(p, l + 1) - begin : 0;
  const uint64_t longest = part_begin(p, first + 1) - part_begin(p, first);
  const auto decode = [&](auto with_blocks) {
    return decode_lanes<with_blocks.value>(state, lane.block, gaps, levels, words, length, longest,
                                           n_elems, symbols + begin, &covered[l]);
  };
  return __ballot_sync(kAllLanes, there && blocks) != 0 ? decode(std::true_type())
                                                        : decode(std::false_type());
}

__global__ void __launch_bounds__(kWarp)
    decode_each(const uint8_t* slices, const uint64_t* offsets, LaneTables lanes, uint64_t n_elems,
                SentSymbol* symbols, uint64_t* covered, Progress* progress) {
  const uint64_t n_slices = slices_of(lanes.partition.n_parts);
  for (uint64_t s = blockIdx.x; s < n_slices; s += gridDim.x) {
    const auto* const slice = reinterpret_cast<const uint16_t*>(slices + offsets[s]);
    const bool sound = decode_slice(slice, offsets[s + 1] - offsets[s], lanes, s * kLanesOfSlice,
                                    n_elems, symbols, covered);
    if (!sound && lane_of_thread() == 0) lower_atomically(&progress->bad_slice, s);
  }
}

// From how much each lane covers to where it begins; by one block.
__global__ void __launch_bounds__(kScanThreads)
    place_lanes(uint64_t n, uint64_t n_elems, uint64_t* covered, Progress* progress) {
  if (progress->is_damaged()) return;
  const auto [begin, end] = range_of_thread(n);
  uint64_t mine = 0, total = 0;
  for (uint64_t l = begin; l < end; ++l) mine += covered[l];
  uint64_t place = sum_of_threads_below(mine, &total);
  for (uint64_t l = begin; l < end; ++l) {
    const uint64_t of_lane = covered[l];
    covered[l] = place;
    place += of_lane;
    if (place > n_elems) lower_atomically(&progress->bad_slice, l / kLanesOfSlice);
  }
}

// To indices among all elements, and out of the scan order.
__global__ void __launch_bounds__(kThreads)
    place_symbols(DeviceGroup group, Partition p, const uint64_t* begins, const DeviceScan* scans,
                  SentSymbol* symbols, Progress* progress) {
  if (progress->is_damaged()) return;
  for (uint64_t l = blockIdx.x; l < p.n_parts; l += gridDim.x) {
    const uint64_t end = part_begin(p, l + 1);
    for (uint64_t i = part_begin(p, l) + threadIdx.x; i < end; i += blockDim.x) {
      SentSymbol symbol = symbols[i];
      symbol.move_up(begins[l]);
      if (symbol.index() < group.n_elems) {
        const DeviceMember& member = group.member_at(symbol.index());
        const DeviceScan& scan = scans[&member - group.members];
        if (scan.row_length > 0 && !scan.undo(member.begin, &symbol)) progress->outside = 1;
      }
      symbols[i] = symbol;
    }
  }
}

}  // namespace

void decode_lanes(const Stage& stage, const uint8_t* slices, const uint64_t* offsets,
                  const LaneTables& lanes, const DeviceScan* scans, uint64_t n_elems,
                  uint64_t* begins, SentSymbol* symbols) {
  const auto& [group, progress, n_blocks, stream] = stage;
  const uint64_t n_lanes = lanes.partition.n_parts;
  const auto n_slices = static_cast<unsigned>(min_of<uint64_t>(slices_of(n_lanes), 1u << 20));
  launch(decode_each, n_slices, kWarp, stream, slices, offsets, lanes, n_elems, symbols, begins,
         progress);
  launch(place_lanes, 1, kScanThreads, stream, n_lanes, n_elems, begins, progress);
  launch(place_symbols, static_cast<unsigned>(min_of<uint64_t>(n_lanes, n_blocks)), kThreads,
         stream, group, lanes.partition, begins, scans, symbols, progress);
}

}  // namespace resfed::cuda

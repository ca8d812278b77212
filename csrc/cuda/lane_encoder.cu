// Stage 4 on the device, encoding: symbols of lanes, and then words. Between the kernels the host
// chooses sets of tables, see lane_coder.cu; lane_costs.cu has what the symbols cost.
#include "cuda/slices.cuh"
#include "entropy/interleaved_rans.hpp"

namespace resfed::cuda {
namespace {

__device__ uint64_t thread_of_grid() {
  return blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
}
__device__ uint64_t threads_of_grid() { return static_cast<uint64_t>(gridDim.x) * blockDim.x; }

// Of a nonzero, with the mantissas of escapes.
__device__ uint32_t n_raw_bits(const NonzeroCode& code, unsigned shift) {
  const uint32_t gap = code.gap % kSymbols, level = code.level % kSignChanged;
  return gap_raw_bits(gap) + (gap == kGapEscape ? code.raw_gap : 0) + level_raw_bits(level, shift) +
         (level == kLevelEscape ? code.raw_level : 0);
}

// Calls visit(step, code) for the n nonzeros of a lane. The next few are under way meanwhile.
template <bool kBlocks, class Nonzero, class Visit>
__device__ void for_each_step(const Nonzero* sent, uint32_t n, uint64_t before, Block block,
                              unsigned shift, Visit visit) {
  constexpr uint32_t kAhead = 4;
  struct Some {
    Nonzero of[kAhead];
  };
  const auto load = [&](uint32_t first) {
    Some some;
    RESFED_UNROLL
    for (uint32_t i = 0; i < kAhead; ++i) some.of[i] = sent[min_of(first + i, n - 1)];
    return some;
  };
  CodeFinder<kBlocks, Nonzero> codes(block, shift);
  Some next = load(0);
  for (uint32_t first = 0; first < n; first += kAhead) {
    const Some now = next;
    next = load(first + kAhead);
    RESFED_UNROLL
    for (uint32_t i = 0; i < kAhead; ++i) {
      if (first + i >= n) break;
      const uint64_t index = now.of[i].index();
      visit(first + i, codes.next(index - before, now.of[i]));
      before = index;
    }
  }
}

// A warp takes a slice, each of its threads a lane.
template <class Nonzero>
__global__ void __launch_bounds__(kWarp)
    find_codes(const Nonzero* sent, Partition p, MatrixList matrices, NonzeroCode* codes,
               FoundLane* lanes, uint32_t* counts) {
  for (uint64_t i = thread_of_grid(); i < kCounts; i += threads_of_grid()) counts[i] = 0;
  for (uint64_t s = blockIdx.x; s < slices_of(p.n_parts); s += gridDim.x) {
    const SliceOfLanes slice(p, s);
    const OwnLane own(p, slice);
    if (own.n_steps == 0) continue;
    const Nonzero* const symbols = sent + own.begin;
    const uint64_t before = own.begin == 0 ? ~uint64_t{0} : sent[own.begin - 1].index();
    const Block block = choose_block(symbols, own.n_steps, matrices.of, matrices.n);
    const unsigned shift = choose_shift(symbols, own.n_steps);
    uint32_t raw_bits = 0;
    NonzeroCode* const own_codes = codes + slice.code_at(0, lane_of_thread());
    const auto keep = [&](uint32_t step, const NonzeroCode& code) {
      own_codes[uint64_t{step} * slice.n_lanes] = code;
      raw_bits += n_raw_bits(code, shift);
    };
    if (block.size > 0) {
      for_each_step<true>(symbols, own.n_steps, before, block, shift, keep);
    } else {
      for_each_step<false>(symbols, own.n_steps, before, block, shift, keep);
    }
    lanes[own.number].block = block;
    lanes[own.number].shift = static_cast<uint8_t>(shift);
    lanes[own.number].raw_bits = raw_bits;
  }
}

// A symbol ready to be coded.
struct ReadySymbol {
  uint16_t start, freq;
  uint32_t inverse;  // of the frequency, times 2^32, rounded down
};
// What a lane codes in a step. A lane that has ended codes symbols of all slots and no raw bits,
// which leave its state.
struct alignas(8) ReadyStep {
  ReadySymbol gap, level;
  uint16_t raw_gap, raw_level;
  uint8_t gap_bits, level_bits, occurs;
};

__device__ ReadySymbol ready(const TableStarts& table, uint32_t code) {
  const Slots slots = table.slots_of(code);
  return {slots.start, slots.freq, ~0u / slots.freq};
}

// Words of a slice, written downwards. All functions are called by the whole warp; what lanes write
// together lies in the order of the lanes.
class WordWriter {
 public:
  __device__ WordWriter(uint16_t* words, uint32_t n) : words_(words), at_(n) {}

  __device__ void put(uint32_t& state, const ReadySymbol& symbol) {
    state = with_room(state, state >> (32 - kFrequencyBits) >= symbol.freq);
    const uint32_t quotient = product_above(state, symbol.inverse);  // or one less
    const uint32_t step = kFrequencyOne - symbol.freq;
    const bool one_more = state - quotient * symbol.freq >= symbol.freq;
    state += quotient * step + (one_more ? step : 0) + symbol.start;
  }
  __device__ void put_raw(uint32_t& state, uint32_t value, unsigned n_bits) {  // n_bits <= 16
    state = with_room(state, is_full(state, n_bits)) << n_bits | value;
  }
  // The lowest n_bits of a value, of the lanes that have any, the last one first.
  __device__ void put_pieces(uint32_t& state, uint64_t value, unsigned n_bits) {
    for (unsigned left = __ballot_sync(kAllLanes, n_bits > 0); left != 0;) {
      const unsigned lane = floor_log2(left);
      left ^= 1u << lane;
      if (lane == lane_of_thread()) {
        for_each_piece_backwards(value, n_bits, [&](uint32_t piece, unsigned n) {
          if (is_full(state, n)) {
            words_[--at_] = static_cast<uint16_t>(state);
            state >>= 16;
          }
          state = state << n | piece;
        });
      }
      at_ = __shfl_sync(kAllLanes, at_, static_cast<int>(lane));
    }
  }
  // The states of the lanes, in front of all words; returns where they begin.
  __device__ uint32_t finish(uint32_t state, uint32_t n_lanes) {
    at_ -= 2 * n_lanes;
    if (lane_of_thread() < n_lanes) {
      words_[at_ + 2 * lane_of_thread()] = static_cast<uint16_t>(state);
      words_[at_ + 2 * lane_of_thread() + 1] = static_cast<uint16_t>(state >> 16);
    }
    return at_;
  }

 private:
  __device__ static uint32_t product_above(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(uint64_t{a} * b >> 32);
  }
  __device__ static bool is_full(uint32_t state, unsigned n_bits) {
    return static_cast<uint64_t>(state) << n_bits >> 32 != 0;
  }
  __device__ uint32_t with_room(uint32_t state, bool full) {
    const unsigned givers = __ballot_sync(kAllLanes, full);
    at_ -= static_cast<unsigned>(__popc(givers));
    if (!full) return state;
    words_[at_ + static_cast<unsigned>(__popc(givers & lanes_below()))] =
        static_cast<uint16_t>(state);
    return state >> 16;
  }
  uint16_t* words_;
  uint32_t at_;  // of the last word
};

// The first warp of a block codes a slice; the others make ready what it codes next, a tile of
// steps at a time.
constexpr unsigned kTile = 16;
constexpr unsigned kReadyWarps = 4;
constexpr unsigned kEncodeThreads = (1 + kReadyWarps) * kWarp;

template <class Nonzero>
__global__ void __launch_bounds__(kEncodeThreads)
    encode_each(const Nonzero* sent, const NonzeroCode* codes, LaneTables lanes,
                const uint64_t* rooms, uint16_t* words, uint64_t* places) {
  __shared__ ReadyStep ready_steps[2][kTile][kWarp];
  __shared__ uint8_t occurs_in[2][kTile];  // in any lane
  const Partition& p = lanes.partition;
  const unsigned warp = threadIdx.x / kWarp;
  for (uint64_t s = blockIdx.x; s < slices_of(p.n_parts); s += gridDim.x) {
    const SliceOfLanes slice(p, s);
    const OwnLane own(p, slice);
    const Lane lane = lanes.of[own.number];
    const bool blocks = lane.block.size > 0;
    constexpr Part kPart = part_of<Nonzero>;
    const TableStarts& gaps = lanes.tables.at(gap_family(kPart, blocks), lane.gap_set);
    const TableStarts& levels = lanes.tables.at(level_family(kPart, blocks), lane.level_set);
    const uint32_t n_tiles = (slice.n_steps + kTile - 1) / kTile;
    // Steps are coded backwards: this is the tile's step i.
    const auto step_of = [&](uint32_t tile, uint32_t i) {
      return slice.n_steps - 1 - (tile * kTile + i);
    };
    const auto steps_of = [&](uint32_t tile) {
      return min_of(kTile, slice.n_steps - tile * kTile);
    };
    const auto make_ready = [&](uint32_t tile) {
      const uint32_t n = steps_of(tile);
      RESFED_UNROLL
      for (uint32_t turn = 0; turn < kTile / kReadyWarps; ++turn) {
        const uint32_t i = turn * kReadyWarps + warp - 1;
        if (i >= n) break;
        const uint32_t step = step_of(tile, i);
        constexpr ReadySymbol kNoSymbol{0, kFrequencyOne, ~0u / kFrequencyOne};
        ReadyStep r{kNoSymbol, kNoSymbol, 0, 0, 0, 0, 0};
        if (step < own.n_steps) {
          const NonzeroCode code = codes[slice.code_at(step, lane_of_thread())];
          r = {ready(gaps, code.gap),
               ready(levels, code.level),
               code.raw_gap,
               code.raw_level,
               static_cast<uint8_t>(gap_raw_bits(code.gap % kSymbols)),
               static_cast<uint8_t>(
                   min_of(level_raw_bits(code.level % kSymbols, lane.shift), kPieceBits)),
               static_cast<uint8_t>(code.occurs)};
        }
        ready_steps[tile % 2][i][lane_of_thread()] = r;
        const unsigned any =
            (__ballot_sync(kAllLanes, r.occurs & kGapEscapes) != 0 ? kGapEscapes : 0u) |
            (__ballot_sync(kAllLanes, r.occurs & kRawLevels) != 0 ? kRawLevels : 0u) |
            (__ballot_sync(kAllLanes, r.occurs & kLongLevels) != 0 ? kLongLevels : 0u);
        if (lane_of_thread() == 0) occurs_in[tile % 2][i] = static_cast<uint8_t>(any);
      }
    };
    // The decoder reads gaps, their raw bits, levels, their raw bits, of all lanes.
    const auto encode_tile = [&](uint32_t tile, WordWriter& out, uint32_t& state) {
      const uint32_t n = steps_of(tile);
      ReadyStep next = ready_steps[tile % 2][0][lane_of_thread()];
      for (uint32_t i = 0; i < n; ++i) {
        const ReadyStep r = next;
        const unsigned occurs = occurs_in[tile % 2][i];
        next = ready_steps[tile % 2][min_of(i + 1, n - 1)][lane_of_thread()];
        const uint64_t at = own.begin + step_of(tile, i);
        if ((occurs & kLongLevels) != 0) {
          RestOfLevel rest{0, 0};
          if ((r.occurs & kLongLevels) != 0) {
            const uint64_t level = magnitude(sent[at].level());
            rest = rest_of_level(level, level_symbol(level, lane.shift), lane.shift);
          }
          out.put_pieces(state, rest.bits, rest.n_bits);
        }
        if ((occurs & kRawLevels) != 0) out.put_raw(state, r.raw_level, r.level_bits);
        out.put(state, r.level);
        if ((occurs & kGapEscapes) != 0) {
          const bool escaped = (r.occurs & kGapEscapes) != 0;
          const uint64_t gap = escaped ? gap_at(sent, at) : 1;
          out.put_pieces(state, gap, floor_log2(gap));
        }
        out.put_raw(state, r.raw_gap, r.gap_bits);
        out.put(state, r.gap);
      }
    };
    WordWriter out(words + rooms[s], static_cast<uint32_t>(rooms[s + 1] - rooms[s]));
    uint32_t state = kLaneStart;
    for (uint32_t tile = 0; tile <= n_tiles; ++tile) {
      if (warp > 0 && tile < n_tiles) make_ready(tile);
      if (warp == 0 && tile > 0) encode_tile(tile - 1, out, state);
      __syncthreads();
    }
    if (warp > 0) continue;
    const uint32_t place = out.finish(state, slice.n_lanes);
    if (lane_of_thread() == 0) places[s] = rooms[s] + place;
  }
}

}  // namespace

template <class Nonzero>
void find_symbols(const Stage& stage, const Nonzero* sent, Partition p, MatrixList matrices,
                  NonzeroCode* codes, FoundLane* lanes, uint32_t* counts) {
  launch(find_codes<Nonzero>, blocks_for(p), kWarp, stage.stream, sent, p, matrices, codes, lanes,
         counts);
}

template <class Nonzero>
void encode_lanes(const Stage& stage, const Nonzero* sent, const NonzeroCode* codes,
                  const LaneTables& lanes, const uint64_t* rooms, uint16_t* words,
                  uint64_t* places) {
  launch(encode_each<Nonzero>, blocks_for(lanes.partition), kEncodeThreads, stage.stream, sent,
         codes, lanes, rooms, words, places);
}

#define RESFED_INSTANTIATE(Nonzero)                                                               \
  template void find_symbols(const Stage&, const Nonzero*, Partition, MatrixList, NonzeroCode*,   \
                             FoundLane*, uint32_t*);                                              \
  template void encode_lanes(const Stage&, const Nonzero*, const NonzeroCode*, const LaneTables&, \
                             const uint64_t*, uint16_t*, uint64_t*);
RESFED_INSTANTIATE(SentSymbol)
RESFED_INSTANTIATE(ChangedElement)
#undef RESFED_INSTANTIATE

}  // namespace resfed::cuda

// Stage 4 on the device, encoding: symbols of lanes, what they cost under the sets of tables, and
// then words. A warp encodes a slice, each of its threads a lane. Between the kernels the host
// chooses sets, see lane_coder.cu.
#include "cuda/pipeline.cuh"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 256;
static_assert(kLanesOfSlice == kWarp);
static_assert(2 * kTrainedSets == kWarp);

__device__ uint64_t thread_of_grid() {
  return blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
}
__device__ uint64_t threads_of_grid() { return static_cast<uint64_t>(gridDim.x) * blockDim.x; }

// A thread takes a lane.
__global__ void __launch_bounds__(kWarp)
    find_codes(const SentSymbol* sent, Partition p, MatrixList matrices, NonzeroCode* codes,
               FoundLane* lanes, uint32_t* counts) {
  for (uint64_t i = thread_of_grid(); i < kCounts; i += threads_of_grid()) counts[i] = 0;
  for (uint64_t l = thread_of_grid(); l < p.n_parts; l += threads_of_grid()) {
    const uint64_t begin = part_begin(p, l), end = part_begin(p, l + 1);
    const Block block = choose_block(sent + begin, end - begin, matrices.of, matrices.n);
    uint32_t raw_bits = 0;
    const auto keep = [&](uint64_t i, const NonzeroCode& code) {
      codes[i] = code;
      raw_bits += n_raw_bits(code);
    };
    if (block.size > 0) {
      for_each_code<true>(sent, begin, end, block, keep);
    } else {
      for_each_code<false>(sent, begin, end, block, keep);
    }
    lanes[l].block = block;
    lanes[l].raw_bits = raw_bits;
  }
}

// Code lengths under the trained sets, and how often each symbol occurs. A warp takes a lane: half
// of its threads take a set for gaps, the others one for levels.
__global__ void __launch_bounds__(kThreads)
    find_costs(const NonzeroCode* codes, Partition p, const DeviceTrained* trained,
               FoundLane* lanes, uint32_t* counts) {
  __shared__ uint32_t of_block[kFamilies][kCodes];
  for (uint32_t i = threadIdx.x; i < kCounts; i += blockDim.x) of_block[i / kCodes][i % kCodes] = 0;
  __syncthreads();
  const uint64_t n_warps = threads_of_grid() / kWarp;
  for (uint64_t l = thread_of_grid() / kWarp; l < p.n_parts; l += n_warps) {
    const uint64_t begin = part_begin(p, l), end = part_begin(p, l + 1);
    const bool blocks = lanes[l].block.size > 0, of_gaps = lane_of_thread() < kTrainedSets;
    const Family gaps = gap_family(blocks), levels = level_family(blocks);
    const auto& costs = trained->costs[of_gaps ? gaps : levels];
    const uint32_t set = lane_of_thread() % kTrainedSets;
    uint32_t cost = 0;
    for (uint64_t i = begin; i < end; ++i)
      cost += costs[of_gaps ? codes[i].gap : codes[i].level][set];
    LaneCosts& found = lanes[l].costs;
    (of_gaps ? found.gaps : found.levels)[set] = cost;
    for (uint64_t i = begin + lane_of_thread(); i < end; i += kWarp) {
      atomicAdd(&of_block[gaps][codes[i].gap], 1u);
      atomicAdd(&of_block[levels][codes[i].level], 1u);
    }
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < kCounts; i += blockDim.x) {
    const uint32_t count = of_block[i / kCodes][i % kCodes];
    if (count != 0) atomicAdd(&counts[i], count);
  }
}

// The same under the fitted sets. A warp takes a lane.
__global__ void __launch_bounds__(kThreads)
    sum_fitted_costs(const NonzeroCode* codes, Partition p, const DeviceFitted* fitted,
                     const FoundLane* lanes, FittedCosts* sums) {
  const uint64_t n_warps = threads_of_grid() / kWarp;
  for (uint64_t l = thread_of_grid() / kWarp; l < p.n_parts; l += n_warps) {
    const bool blocks = lanes[l].block.size > 0;
    const auto& gap_costs = fitted->costs[gap_family(blocks)];
    const auto& level_costs = fitted->costs[level_family(blocks)];
    uint32_t gaps = 0, levels = 0;
    for (uint64_t i = part_begin(p, l) + lane_of_thread(); i < part_begin(p, l + 1); i += kWarp) {
      gaps += gap_costs[codes[i].gap];
      levels += level_costs[codes[i].level];
    }
    gaps = sum_of_warp(gaps);
    levels = sum_of_warp(levels);
    if (lane_of_thread() == 0) sums[l] = {gaps, levels};
  }
}

// Words of a slice, written downwards. All functions are called by the whole warp; what lanes write
// together lies in the order of the lanes.
class WordWriter {
 public:
  __device__ WordWriter(uint16_t* words, uint64_t end) : words_(words), at_(end) {}

  __device__ void put(uint32_t& state, bool active, Slots slots) {
    state = with_room(state, active && state >= lane_limit(slots.freq));
    if (active) state = with_symbol(state, slots);
  }
  __device__ void put_raw(uint32_t& state, uint32_t value, unsigned n_bits) {  // n_bits <= 16
    state = with_room(state, is_full(state, n_bits)) << n_bits | value;
  }
  // Of the lanes that are `escaped`, the last one first, the bits below the value's leading one.
  __device__ void put_mantissas(uint32_t& state, bool escaped, uint64_t value) {
    for (unsigned left = __ballot_sync(kAllLanes, escaped); left != 0;) {
      const unsigned lane = floor_log2(left);
      left ^= 1u << lane;
      if (lane == lane_of_thread()) {
        for_each_piece_backwards(value, [&](uint32_t piece, unsigned n_bits) {
          if (is_full(state, n_bits)) {
            words_[--at_] = static_cast<uint16_t>(state);
            state >>= 16;
          }
          state = state << n_bits | piece;
        });
      }
      at_ = __shfl_sync(kAllLanes, at_, static_cast<int>(lane));
    }
  }
  // The states of the lanes, in front of all words; returns where they begin.
  __device__ uint64_t finish(uint32_t state, uint64_t n_lanes) {
    at_ -= 2 * n_lanes;
    if (lane_of_thread() < n_lanes) {
      words_[at_ + 2 * lane_of_thread()] = static_cast<uint16_t>(state);
      words_[at_ + 2 * lane_of_thread() + 1] = static_cast<uint16_t>(state >> 16);
    }
    return at_;
  }

 private:
  __device__ static bool is_full(uint32_t state, unsigned n_bits) {
    return static_cast<uint64_t>(state) << n_bits >> 32 != 0;
  }
  __device__ uint32_t with_room(uint32_t state, bool full) {
    const unsigned givers = __ballot_sync(kAllLanes, full);
    if (full) {
      const unsigned above = givers & ~lanes_below() & ~(1u << lane_of_thread());
      words_[at_ - 1 - static_cast<unsigned>(__popc(above))] = static_cast<uint16_t>(state);
      state >>= 16;
    }
    at_ -= static_cast<unsigned>(__popc(givers));
    return state;
  }
  uint16_t* words_;
  uint64_t at_;  // of the last word
};

__device__ Slots slots_at(const TableStarts& table, uint32_t code) {
  const uint16_t* const starts = &table.of[0][0];
  const uint32_t start = starts[code];
  const uint32_t end = code % kSymbols == kSymbols - 1 ? kFrequencyOne : starts[code + 1];
  return {static_cast<uint16_t>(start), static_cast<uint16_t>(end - start)};
}

__global__ void __launch_bounds__(kWarp)
    encode_each(const SentSymbol* sent, const NonzeroCode* codes, LaneTables lanes,
                const uint64_t* rooms, uint16_t* words, uint64_t* places) {
  const Partition& p = lanes.partition;
  for (uint64_t s = blockIdx.x; s < slices_of(p.n_parts); s += gridDim.x) {
    const uint64_t first = s * kLanesOfSlice;
    const uint64_t n_lanes = min_of<uint64_t>(p.n_parts - first, kLanesOfSlice);
    const bool there = lane_of_thread() < n_lanes;
    const uint64_t l = first + (there ? lane_of_thread() : 0);
    const Lane lane = lanes.of[l];
    const bool blocks = lane.block.size > 0;
    const TableStarts& gaps = lanes.tables.at(gap_family(blocks), lane.gap_set);
    const TableStarts& levels = lanes.tables.at(level_family(blocks), lane.level_set);
    const uint64_t begin = part_begin(p, l), length = there ? part_begin(p, l + 1) - begin : 0;
    WordWriter out(words, rooms[s + 1]);
    uint32_t state = kLaneStart;
    // Backwards: the decoder reads gaps, their raw bits, levels, their raw bits, of all lanes.
    for (uint64_t step = part_begin(p, first + 1) - part_begin(p, first); step-- > 0;) {
      const bool active = step < length;
      const uint64_t i = begin + step;
      const NonzeroCode code = active ? codes[i] : NonzeroCode{};
      const bool level_escaped = (code.occurs & kLevelEscapes) != 0;
      const bool gap_escaped = (code.occurs & kGapEscapes) != 0;
      if (__ballot_sync(kAllLanes, level_escaped) != 0) {
        out.put_mantissas(state, level_escaped, level_escaped ? magnitude(sent[i].level()) : 1);
      }
      if (__ballot_sync(kAllLanes, (code.occurs & kRawLevels) != 0) != 0) {
        out.put_raw(state, code.raw_level, level_raw_bits(code.level % kSymbols));
      }
      out.put(state, active, slots_at(levels, code.level));
      if (__ballot_sync(kAllLanes, gap_escaped) != 0) {
        out.put_mantissas(state, gap_escaped, gap_escaped ? gap_at(sent, i) : 1);
      }
      out.put_raw(state, code.raw_gap, gap_raw_bits(code.gap % kSymbols));
      out.put(state, active, slots_at(gaps, code.gap));
    }
    const uint64_t place = out.finish(state, n_lanes);
    if (lane_of_thread() == 0) places[s] = place;
  }
}

unsigned at_most(uint64_t n, unsigned most) {
  return static_cast<unsigned>(min_of<uint64_t>(n, most));
}

}  // namespace

void find_symbols(const Stage& stage, const SentSymbol* sent, Partition p, MatrixList matrices,
                  const DeviceTrained* trained, NonzeroCode* codes, FoundLane* lanes,
                  uint32_t* counts) {
  const auto& [group, progress, n_blocks, stream] = stage;
  launch(find_codes, at_most(slices_of(p.n_parts), 1u << 20), kWarp, stream, sent, p, matrices,
         codes, lanes, counts);
  launch(find_costs, at_most(n_blocks_of(p.n_parts, kThreads / kWarp), n_blocks), kThreads, stream,
         codes, p, trained, lanes, counts);
}

void find_fitted_costs(const Stage& stage, const NonzeroCode* codes, Partition p,
                       const DeviceFitted* fitted, const FoundLane* lanes, FittedCosts* costs) {
  launch(sum_fitted_costs, at_most(n_blocks_of(p.n_parts, kThreads / kWarp), stage.n_blocks),
         kThreads, stage.stream, codes, p, fitted, lanes, costs);
}

void encode_lanes(const Stage& stage, const SentSymbol* sent, const NonzeroCode* codes,
                  const LaneTables& lanes, const uint64_t* rooms, uint16_t* words,
                  uint64_t* places) {
  launch(encode_each, at_most(slices_of(lanes.partition.n_parts), 1u << 20), kWarp, stage.stream,
         sent, codes, lanes, rooms, words, places);
}

}  // namespace resfed::cuda

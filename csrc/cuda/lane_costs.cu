// Stage 4 on the device, encoding: what the symbols of lanes cost under the sets of tables, and how
// often each occurs. The host chooses sets from this, see lane_coder.cu.
#include "cuda/slices.cuh"

namespace resfed::cuda {
namespace {

constexpr unsigned kThreads = 512;

// Code lengths of a code under the trained sets, two of them in a number.
constexpr uint32_t kPairs = kTrainedSets / 2;
struct alignas(16) SetPairs {
  uint32_t of[kPairs];
};
static_assert(sizeof(SetPairs) == sizeof(DeviceTrained::costs[0][0]));

// The lane's code lengths under the trained sets of a family, of every n_warps'th code.
template <class CodeAt>
__device__ void add_costs(const uint16_t (*costs)[kTrainedSets], uint32_t n_steps, unsigned n_warps,
                          CodeAt code_at, uint32_t (*sums)[kWarp]) {
  constexpr uint32_t kWithoutOverflow = 128;  // codes; none costs more than 384
  for (uint32_t step = threadIdx.x / kWarp; step < n_steps;) {
    SetPairs some{};
    for (uint32_t n = 0; n < kWithoutOverflow && step < n_steps; ++n, step += n_warps) {
      const SetPairs of_code = *reinterpret_cast<const SetPairs*>(&costs[code_at(step)]);
      RESFED_UNROLL
      for (uint32_t i = 0; i < kPairs; ++i) some.of[i] += of_code.of[i];
    }
    for (uint32_t i = 0; i < kPairs; ++i) {
      atomicAdd(&sums[2 * i][lane_of_thread()], some.of[i] & 0xffffu);
      atomicAdd(&sums[2 * i + 1][lane_of_thread()], some.of[i] >> 16);
    }
  }
}

// What lanes cost under the trained sets, and how often each symbol occurs. A block takes a slice,
// and of each of its warps the threads take a lane.
template <Part kPart>
__global__ void __launch_bounds__(kThreads)
    find_costs(const NonzeroCode* codes, Partition p, const DeviceTrained* trained,
               FoundLane* lanes, uint32_t* counts) {
  constexpr uint32_t kFirst = kPart == Part::kLossy ? 0 : kLossyFamilies;
  constexpr uint32_t kHere = kPart == Part::kLossy ? kLossyFamilies : kFamilies - kLossyFamilies;
  __shared__ uint32_t of_block[kHere][kCodes];
  __shared__ uint32_t gap_sums[kTrainedSets][kWarp], level_sums[kTrainedSets][kWarp];
  const auto for_each_count = [&](auto visit) {
    for (uint32_t i = threadIdx.x; i < kHere * kCodes; i += blockDim.x) {
      visit(of_block[i / kCodes][i % kCodes], counts[kFirst * kCodes + i]);
    }
  };
  for_each_count([](uint32_t& of_block, uint32_t&) { of_block = 0; });
  const unsigned n_warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
  for (uint64_t s = blockIdx.x; s < slices_of(p.n_parts); s += gridDim.x) {
    for (uint32_t set = warp; set < kTrainedSets; set += n_warps) {
      gap_sums[set][lane_of_thread()] = level_sums[set][lane_of_thread()] = 0;
    }
    __syncthreads();
    const SliceOfLanes slice(p, s);
    const OwnLane own(p, slice);
    const NonzeroCode* const own_codes = codes + slice.code_at(0, lane_of_thread());
    const bool blocks = lanes[own.number].block.size > 0;
    const Family gaps = gap_family(kPart, blocks), levels = level_family(kPart, blocks);
    add_costs(
        trained->costs[gaps], own.n_steps, n_warps,
        [&](uint32_t step) {
          const uint16_t code = own_codes[step * slice.n_lanes].gap;
          atomicAdd(&of_block[gaps - kFirst][code], 1u);
          return code;
        },
        gap_sums);
    add_costs(
        trained->costs[levels], own.n_steps, n_warps,
        [&](uint32_t step) {
          const uint16_t code = own_codes[step * slice.n_lanes].level;
          atomicAdd(&of_block[levels - kFirst][code], 1u);
          return code;
        },
        level_sums);
    __syncthreads();
    for (uint32_t set = warp; set < kTrainedSets && own.n_steps > 0; set += n_warps) {
      lanes[own.number].costs.gaps[set] = gap_sums[set][lane_of_thread()];
      lanes[own.number].costs.levels[set] = level_sums[set][lane_of_thread()];
    }
    __syncthreads();  // the next slice's sums begin
  }
  __syncthreads();
  for_each_count([](uint32_t& of_block, uint32_t& of_all) {
    if (of_block != 0) atomicAdd(&of_all, of_block);
  });
}

// The same under the fitted sets.
template <Part kPart>
__global__ void __launch_bounds__(kThreads)
    sum_fitted_costs(const NonzeroCode* codes, Partition p, const DeviceFitted* fitted,
                     const FoundLane* lanes, FittedCosts* sums) {
  __shared__ uint32_t gap_sums[kWarp], level_sums[kWarp];
  for (uint64_t s = blockIdx.x; s < slices_of(p.n_parts); s += gridDim.x) {
    if (threadIdx.x < kWarp) gap_sums[threadIdx.x] = level_sums[threadIdx.x] = 0;
    __syncthreads();
    const SliceOfLanes slice(p, s);
    const OwnLane own(p, slice);
    const NonzeroCode* const own_codes = codes + slice.code_at(0, lane_of_thread());
    const bool blocks = lanes[own.number].block.size > 0;
    const auto& gap_costs = fitted->costs[gap_family(kPart, blocks)];
    const auto& level_costs = fitted->costs[level_family(kPart, blocks)];
    uint32_t gaps = 0, levels = 0;
    for (uint32_t step = threadIdx.x / kWarp; step < own.n_steps; step += blockDim.x / kWarp) {
      const NonzeroCode code = own_codes[step * slice.n_lanes];
      gaps += gap_costs[code.gap];
      levels += level_costs[code.level];
    }
    atomicAdd(&gap_sums[lane_of_thread()], gaps);
    atomicAdd(&level_sums[lane_of_thread()], levels);
    __syncthreads();
    if (threadIdx.x < slice.n_lanes) {
      sums[slice.first + threadIdx.x] = {gap_sums[threadIdx.x], level_sums[threadIdx.x]};
    }
    __syncthreads();
  }
}

unsigned blocks_of(const Stage& stage, const Partition& p) {
  return static_cast<unsigned>(min_of<uint64_t>(slices_of(p.n_parts), stage.n_blocks));
}

}  // namespace

void find_lane_costs(const Stage& stage, Part part, const NonzeroCode* codes, Partition p,
                     const DeviceTrained* trained, FoundLane* lanes, uint32_t* counts) {
  const auto kernel = part == Part::kLossy ? find_costs<Part::kLossy> : find_costs<Part::kLossless>;
  launch(kernel, blocks_of(stage, p), kThreads, stage.stream, codes, p, trained, lanes, counts);
}

void find_fitted_costs(const Stage& stage, Part part, const NonzeroCode* codes, Partition p,
                       const DeviceFitted* fitted, const FoundLane* lanes, FittedCosts* costs) {
  const auto kernel =
      part == Part::kLossy ? sum_fitted_costs<Part::kLossy> : sum_fitted_costs<Part::kLossless>;
  launch(kernel, blocks_of(stage, p), kThreads, stage.stream, codes, p, fitted, lanes, costs);
}

}  // namespace resfed::cuda

// Which nonzeros a block takes that codes a slice, and which of them each of its threads.
#pragma once

#include "cuda/pipeline.cuh"

namespace resfed::cuda {

static_assert(kLanesOfSlice == kWarp);

// Codes of a slice lie by step, those of a step by lane: neighbors read neighbors.
struct SliceOfLanes {
  uint64_t first, begin;      // of its lanes, of its nonzeros
  uint32_t n_lanes, n_steps;  // the longer lanes come first

  __device__ SliceOfLanes(const Partition& p, uint64_t slice)
      : first(slice * kLanesOfSlice),
        begin(part_begin(p, first)),
        n_lanes(static_cast<uint32_t>(min_of<uint64_t>(p.n_parts - first, kLanesOfSlice))),
        n_steps(static_cast<uint32_t>(part_begin(p, first + 1) - begin)) {}
  __device__ uint64_t code_at(uint32_t step, uint32_t lane) const {
    return begin + uint64_t{step} * n_lanes + lane;
  }
};
// The lane of this thread, where there is one.
struct OwnLane {
  uint64_t number, begin;
  uint32_t n_steps;

  __device__ OwnLane(const Partition& p, const SliceOfLanes& slice)
      : number(slice.first + min_of(lane_of_thread(), slice.n_lanes - 1)),
        begin(part_begin(p, number)),
        n_steps(lane_of_thread() < slice.n_lanes
                    ? static_cast<uint32_t>(part_begin(p, number + 1) - begin)
                    : 0) {}
};

// A block takes a slice, and then others if there are very many.
inline unsigned blocks_for(const Partition& p) {
  return static_cast<unsigned>(min_of<uint64_t>(slices_of(p.n_parts), 1u << 20));
}

}  // namespace resfed::cuda

// What every kernel file needs: launches, checked calls, and the few functions on which warps and
// blocks agree. All blocks are one-dimensional and a multiple of a warp; all warp functions are
// called by whole warps.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "cuda/device.hpp"
#include "host_device.hpp"
#include "status.hpp"

namespace resfed::cuda {

// Before a loop whose arrays are to lie in registers.
#if defined(RESFED_CUDA_EMULATED)
#define RESFED_UNROLL
#else
#define RESFED_UNROLL _Pragma("unroll")
#endif

constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw Failure{Code::kCuda, static_cast<uint64_t>(error), 0};
}

inline cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }

template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), unsigned n_blocks, unsigned n_threads, Stream stream,
            Args&&... args) {
  if (n_blocks == 0) return;
#if defined(RESFED_CUDA_EMULATED)
  check(emulator::launch(n_blocks, n_threads, native(stream), [=] { kernel(args...); }));
#else
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(n_blocks);
  config.blockDim = dim3(n_threads);
  config.stream = native(stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
#endif
}

__device__ inline unsigned lane_of_thread() { return threadIdx.x % kWarp; }
__device__ inline unsigned lanes_below() { return (1u << lane_of_thread()) - 1; }

// CUDA's 64-bit atomics are declared for unsigned long long, which is not uint64_t everywhere.
__device__ inline uint64_t add_atomically(uint64_t* place, uint64_t value) {
  static_assert(sizeof(unsigned long long) == 8);
  return atomicAdd(reinterpret_cast<unsigned long long*>(place),
                   static_cast<unsigned long long>(value));
}
__device__ inline void lower_atomically(uint64_t* place, uint64_t value) {
  atomicMin(reinterpret_cast<unsigned long long*>(place), static_cast<unsigned long long>(value));
}
__device__ inline void raise_atomically(uint64_t* place, uint64_t value) {
  atomicMax(reinterpret_cast<unsigned long long*>(place), static_cast<unsigned long long>(value));
}

// Sum over the lanes, for all of them; only of types in which order does not matter.
template <class Integer>
__device__ Integer sum_of_warp(Integer value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = static_cast<Integer>(value + __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

// Sum over the lanes below this one.
__device__ inline uint64_t sum_of_lanes_below(uint64_t value) {
  uint64_t sum = value;
  for (unsigned distance = 1; distance < kWarp; distance *= 2) {
    const uint64_t other = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane_of_thread() >= distance) sum += other;
  }
  return sum - value;
}

// Calls visit(i) for the thread's part of n, of which the grid takes neighbors together.
template <class Visit>
__device__ void for_each_of_grid(uint64_t n, Visit visit) {
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
    visit(i);
  }
}

// What one thread of a block that deals with all of n takes: consecutive ones.
struct OwnRange {
  uint64_t begin, end;
};
__device__ inline OwnRange range_of_thread(uint64_t n) {
  const uint64_t each = (n + blockDim.x - 1) / blockDim.x;
  return {min_of(n, threadIdx.x * each), min_of(n, (threadIdx.x + 1) * each)};
}
// The same for the blocks of a grid.
__device__ inline OwnRange range_of_block(uint64_t n) {
  const uint64_t each = (n + gridDim.x - 1) / gridDim.x;
  return {min_of(n, blockIdx.x * each), min_of(n, (blockIdx.x + 1) * each)};
}

// Sum over the threads below this one, and of all, in a block of at most 1,024. Synchronizes.
__device__ inline uint64_t sum_of_threads_below(uint64_t value, uint64_t* total) {
  __shared__ uint64_t sums[kWarp];
  const unsigned warp = threadIdx.x / kWarp, n_warps = blockDim.x / kWarp;
  const uint64_t below = sum_of_lanes_below(value);
  if (lane_of_thread() == kWarp - 1) sums[warp] = below + value;
  __syncthreads();
  uint64_t before = 0, all = 0;
  for (unsigned w = 0; w < n_warps; ++w) {
    if (w == warp) before = all;
    all += sums[w];
  }
  __syncthreads();  // the next call may write
  *total = all;
  return before + below;
}

}  // namespace resfed::cuda

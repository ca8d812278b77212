// An emulator of the part of CUDA that csrc/cuda/ uses, so that kernels can be tested without a
// GPU.
//
// The build RESFED_CUDA=EMULATED compiles the .cu files as C++ with this header in the place of the
// CUDA run time's. "Device memory" is host memory of which the emulator keeps account. A kernel's
// blocks run one after the other, in a shuffled order; the threads of a block are fibers that run
// until they wait for each other (__syncthreads, or any warp function with a mask), again in a
// shuffled order. So a missing barrier, an order of blocks taken for granted, a warp function that
// not all lanes reach or memory that nobody allocated shows here. What does not show: races between
// blocks that run at the same time, weak memory order, and time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#define RESFED_CUDA_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static  // blocks run one at a time
#define __launch_bounds__(...)

// Types that CUDA has by itself.
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) ushort4 {
  unsigned short x, y, z, w;
};

// Of the thread that runs.
extern thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// Runs a kernel's body for every thread; returns when all have ended.
void run(dim3 grid, dim3 block, const std::function<void()>& body);

// Waits until all threads of the block, or all of the warp, that have not ended are here.
void wait_for_block();
void wait_for_warp();

// The values that the lanes of this warp gave; `mine` is this one's. Waits for the warp.
const uint64_t* exchange(uint64_t mine);
unsigned lane();

// For tests: allocations fail once this many bytes are held.
void set_memory_limit(size_t n_bytes);

}  // namespace emulator

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::wait_for_warp(); }
inline void __threadfence() {}

inline unsigned __ballot_sync(unsigned, int predicate) {
  const uint64_t* values = emulator::exchange(predicate != 0 ? 2 : 1);
  unsigned ballot = 0;
  for (unsigned i = 0; i < 32; ++i) ballot |= (values[i] == 2 ? 1u : 0u) << i;
  return ballot;
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = emulator::exchange(bits)[lane & 31];
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance) {
  const unsigned lane = emulator::lane();
  return __shfl_sync(mask, value, static_cast<int>(lane >= distance ? lane - distance : lane));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, static_cast<int>(emulator::lane()) ^ lanes);
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }

template <class T>
T atomicAdd(T* place, T value) {
  const T old = *place;
  *place = static_cast<T>(old + value);
  return old;
}
template <class T>
T atomicMin(T* place, T value) {
  const T old = *place;
  if (value < old) *place = value;
  return old;
}
template <class T>
T atomicMax(T* place, T value) {
  const T old = *place;
  if (value > old) *place = value;
  return old;
}
template <class T>
T atomicOr(T* place, T value) {
  const T old = *place;
  *place = old | value;
  return old;
}

// The run time.
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
constexpr unsigned cudaEventDisableTiming = 2;
using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;

cudaError_t cudaMalloc(void** memory, size_t n_bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHost(void** memory, size_t n_bytes);
cudaError_t cudaFreeHost(void* memory);
// Fails for "device" addresses outside of what was allocated.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t n_bytes, cudaStream_t stream);
const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaGetDeviceCount(int* n) { return *n = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = 1, cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = nullptr, cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

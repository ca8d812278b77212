// An emulator of the part of CUDA that csrc/cuda/ uses, so that kernels can be tested without a
// GPU. The build RESFED_CUDA=EMULATED compiles the .cu files as C++ with this header in the place
// of the CUDA run time's, and takes the branches that nvcc takes for the device.
//
// Kernels (kernels.cpp): the threads of a block are fibers that run until they wait for each other
// (__syncthreads, or any warp function with a mask), in a shuffled order; blocks run in a shuffled
// order too, some of them at the same time. So a missing barrier, an order of blocks taken for
// granted or a warp function that not all lanes reach shows.
//
// Memory and streams (runtime.cpp): whatever is put into a stream happens when something waits for
// it. "Device memory" can be touched by kernels and copies only, ends at a page that nobody can
// touch, and is never taken again after it was freed: the process ends where a kernel leaves it, or
// where host code enters it.
//
// RESFED_EMULATOR, words with commas between them, chooses among what a device may do:
//   zeros, ones, stale   what fresh memory holds: bits of 0, bits of 1, what was freed last; else
//                        bytes 0xa5
//   at-once              what is put into a stream happens before the call returns
//   blocks               three processors in the place of one: three times as many blocks
// What does not show: weak memory order, and time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
// Never a function of its own: the CPU's files have others of the same name.
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static thread_local  // a thread of the host runs one block at a time
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
void run(unsigned n_blocks, unsigned n_threads, const std::function<void()>& body);

// Waits until all threads of the block, or all of the warp, that have not ended are here.
void wait_for_block();
void wait_for_warp();

// The values that the lanes of this warp gave; `mine` is this one's. Waits for the warp.
const uint64_t* exchange(uint64_t mine);
unsigned lane();

// Whether RESFED_EMULATOR has this word.
bool is_asked_for(const char* word);

// For tests, by name; returns what it was, or is:
//   memory_limit  allocations on devices fail once this many bytes are held
//   fail_in       after so many more launches, copies and allocations, one fails
//   capturing     the stream that is being captured, as far as the run time can tell
//   launches      of kernels so far
//   waiting       what was put into streams and has not happened
//   contexts      a bit for each device that has a context
uint64_t control(const char* what, uint64_t value);

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

inline int __clzll(long long value) { return value == 0 ? 64 : __builtin_clzll(value); }

namespace emulator {
template <class T, class Change>
T change(T* place, Change changed) {
  const std::atomic_ref<T> shared(*place);
  T old = shared.load();
  while (!shared.compare_exchange_weak(old, changed(old))) {
  }
  return old;
}
}  // namespace emulator
template <class T>
T atomicAdd(T* place, T value) {
  return emulator::change(place, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMin(T* place, T value) {
  return emulator::change(place, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicMax(T* place, T value) {
  return emulator::change(place, [=](T old) { return value > old ? value : old; });
}
template <class T>
T atomicOr(T* place, T value) {
  return emulator::change(place, [=](T old) { return old | value; });
}

// The run time.
#define CUDART_VERSION 13000
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureImplicit = 906
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
constexpr unsigned cudaEventDisableTiming = 2, cudaEnableDefault = 0;
using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;

cudaError_t cudaGetDeviceCount(int* n);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* result);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

cudaError_t cudaMalloc(void** memory, size_t n_bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHost(void** memory, size_t n_bytes);
cudaError_t cudaFreeHost(void* memory);
// Fails for "device" addresses outside of what was allocated.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

namespace emulator {
cudaError_t launch(unsigned n_blocks, unsigned n_threads, cudaStream_t stream,
                   std::function<void()> body);
// Fills what the codec will use as if it were fresh.
void forget(void* memory, size_t n_bytes);
}  // namespace emulator

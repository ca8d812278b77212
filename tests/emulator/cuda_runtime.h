// An emulator of the part of CUDA that csrc/cuda/ uses, for testing kernels without a GPU. The
// build RESFED_CUDA=EMULATED compiles the .cu files as C++ with this header instead of the CUDA
// runtime's, and takes the same branches as nvcc does for the device.
//
// Kernels (kernels.cpp): the threads of a block are fibers. They run in a shuffled order until they
// wait for each other (__syncthreads, or any warp function with a mask). Blocks run in a shuffled
// order, some of them concurrently. This detects missing barriers, assumptions on the order of
// blocks, and warp functions that some lanes do not reach.
//
// Memory and streams (runtime.cpp): operations in a stream run when something waits for them. Only
// kernels and copies can access "device memory". It ends at an inaccessible page, and its addresses
// are never reused. The process aborts when a kernel accesses other memory, or when host code
// accesses device memory.
//
// RESFED_EMULATOR, words separated by commas, sets properties of the device:
//   zeros, ones, stale   contents of new memory: zero bits, one bits, the data freed last; default:
//                        bytes 0xa5
//   at-once              operations in a stream run before the call returns
//   blocks               three multiprocessors instead of one: three times as many blocks
// The emulator does not model weak memory order or time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
// Always inlined: the CPU's files have other functions of the same names.
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static thread_local  // a host thread runs one block at a time
#define __launch_bounds__(...)

// CUDA's built-in types.
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

// Indices of the running thread.
extern thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// Runs a kernel's body for every thread and waits for all.
void run(unsigned n_blocks, unsigned n_threads, const std::function<void()>& body);

// Waits for all threads of the block, or of the warp, that have not ended.
void wait_for_block();
void wait_for_warp();

// The values of all lanes of this warp; `mine` is this lane's. Waits for the warp.
const uint64_t* exchange(uint64_t mine);
unsigned lane();

// Whether RESFED_EMULATOR has this word.
bool is_asked_for(const char* word);

// Sets or reads a value for tests, by name; returns the old or current value:
//   memory_limit  limit of the bytes allocated on devices
//   fail_in       number of launches, copies and allocations until one fails
//   capturing     the stream that the runtime reports as being captured
//   launches      number of kernel launches
//   waiting       number of pending operations in streams
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

// The CUDA runtime.
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
// Fails for "device" addresses outside of allocations.
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
// Fills memory that the codec reuses, as if it were new.
void forget(void* memory, size_t n_bytes);
}  // namespace emulator

// Functions that nvcc's host code and csrc/cuda call and the simulator's runtime lacks, and a
// record of device memory that checks every access of a kernel or a copy.
#include "runtime.hpp"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <vector>

extern "C" {
extern void (*resfed_on_access)(unsigned long long address, unsigned long long n_bytes, int writes);
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, cudaStream_t);
}

namespace {

using Address = unsigned long long;
struct Allocation {
  Address begin, end;
  bool freed;
};

std::mutex mutex;
std::vector<Allocation> allocations;  // the simulator's addresses ascend and are never reused
size_t n_wild = 0;
int fill = 0;
bool lacks_memory = false;
constexpr size_t kGap = 1 << 16;  // between allocations

bool is_allocated(Address address, Address n_bytes) {
  auto after = std::upper_bound(allocations.begin(), allocations.end(), address,
                                [](Address a, const Allocation& x) { return a < x.begin; });
  if (after == allocations.begin()) return false;
  const Allocation& x = *--after;
  return !x.freed && address + n_bytes <= x.end;
}

void look_at(Address address, Address n_bytes, int writes) {
  const std::lock_guard lock(mutex);
  if (is_allocated(address, n_bytes)) return;
  if (++n_wild > 5) return;
  std::printf("WILD: %s %llu bytes at %llx\n", writes ? "writes" : "reads", n_bytes, address);
}

}  // namespace

namespace ptx {

Block::Block(size_t n_bytes) {
  if (cudaMalloc(&data_, n_bytes) != cudaSuccess) std::abort();
}
Block::~Block() { cudaFree(data_); }

void begin_account() { resfed_on_access = look_at; }
size_t wild_accesses() {
  const std::lock_guard lock(mutex);
  return n_wild;
}
void fill_fresh_memory(int byte) { fill = byte; }
void refuse_memory(bool refuse) { lacks_memory = refuse; }

}  // namespace ptx

extern "C" {

cudaError_t cudaMalloc(void** memory, size_t n_bytes) {
  using Call = cudaError_t (*)(void**, size_t);
  static const auto simulated = reinterpret_cast<Call>(dlsym(RTLD_NEXT, "cudaMalloc"));
  if (lacks_memory) return cudaErrorMemoryAllocation;
  if (const cudaError_t error = simulated(memory, n_bytes + kGap)) return error;
  {
    const std::lock_guard lock(mutex);
    const auto begin = reinterpret_cast<Address>(*memory);
    allocations.push_back({begin, begin + n_bytes, false});
  }
  return cudaMemset(*memory, fill, n_bytes);
}

cudaError_t cudaFree(void* memory) {
  const std::lock_guard lock(mutex);
  for (Allocation& x : allocations) {
    if (x.begin != reinterpret_cast<Address>(memory) || x.freed) continue;
    x.freed = true;
    return cudaSuccess;
  }
  return memory == nullptr ? cudaSuccess : cudaErrorInvalidValue;
}

// There is one device with one context, and no capture.
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *function = nullptr;
  *found = cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** memory, size_t n_bytes, cudaStream_t) {
  return cudaMalloc(memory, n_bytes);
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  return cudaFree(memory);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** args) {
  __cudaPushCallConfiguration(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                              config->stream);
  return cudaLaunchKernel(kernel, config->gridDim, config->blockDim, args, config->dynamicSmemBytes,
                          config->stream);
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** args,
                               size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, args, shared, stream);
}

}  // extern "C"

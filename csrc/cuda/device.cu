#include <utility>

#include "cuda/device.hpp"
#include "cuda/launch.cuh"

namespace resfed::cuda {

std::string unavailable_reason() {
  int n_devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&n_devices);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return n_devices == 0 ? "there is no CUDA device" : "";
}

std::string error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

bool is_emulated() {
#if defined(RESFED_CUDA_EMULATED)
  return true;
#else
  return false;
#endif
}

Memory::Memory(int device, size_t n_bytes) : n_bytes_(n_bytes), device_(device) {
  if (n_bytes == 0) return;
  const CurrentDevice current(device);
  if (cudaMalloc(&data_, n_bytes) == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it again
  throw Failure{Code::kDeviceMemory, static_cast<uint64_t>(device), n_bytes};
}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(n_bytes_, other.n_bytes_);
  std::swap(device_, other.device_);
  return *this;
}

Memory::~Memory() {
  if (data_ == nullptr) return;
  int before = 0;
  cudaGetDevice(&before);
  cudaSetDevice(device_);
  cudaFree(data_);
  cudaSetDevice(before);
}

void copy_to_host(void* to, const void* from, size_t n_bytes, int device, Stream stream) {
  const CurrentDevice current(device);
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToHost, native(stream)));
  check(cudaStreamSynchronize(native(stream)));
}

void copy_to_device(void* to, const void* from, size_t n_bytes, int device, Stream stream) {
  const CurrentDevice current(device);
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyHostToDevice, native(stream)));
  check(cudaStreamSynchronize(native(stream)));
}

void copy_on_device(void* to, const void* from, size_t n_bytes, int device, Stream stream) {
  const CurrentDevice current(device);
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToDevice, native(stream)));
}

void wait(int device, Stream stream) {
  const CurrentDevice current(device);
  check(cudaStreamSynchronize(native(stream)));
}

void set_memory_limit(size_t n_bytes) {
#if defined(RESFED_CUDA_EMULATED)
  emulator::set_memory_limit(n_bytes);
#else
  (void)n_bytes;
#endif
}

}  // namespace resfed::cuda

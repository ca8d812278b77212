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

namespace {

// Whether the device's primary context is there. The driver is asked by name, so that nothing of it
// need be linked.
bool has_context(int device) {
  using GetState = int (*)(int device, unsigned* flags, int* active);
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &function, 12000,
                                   cudaEnableDefault, &found);
#else
  cudaGetDriverEntryPoint("cuDevicePrimaryCtxGetState", &function, cudaEnableDefault, &found);
#endif
  unsigned flags = 0;
  int active = 0;
  return function != nullptr && found == cudaDriverEntryPointSuccess &&
         reinterpret_cast<GetState>(function)(device, &flags, &active) == 0 && active != 0;
}

}  // namespace

CurrentDevice::CurrentDevice(int device) {
  check(cudaGetDevice(&before_));
  if (device == before_) return;
  sets_back_ = has_context(before_);
  check(cudaSetDevice(device));
}

CurrentDevice::~CurrentDevice() {
  if (sets_back_) cudaSetDevice(before_);
}

std::shared_ptr<void> allocate(int device, size_t n_bytes) {
  if (n_bytes == 0) return nullptr;
  const CurrentDevice current(device);
  void* made = nullptr;
  if (cudaMalloc(&made, n_bytes) != cudaSuccess) {
    cudaGetLastError();  // or the next launch would report it again
    throw Failure{Code::kDeviceMemory, static_cast<uint64_t>(device), n_bytes};
  }
  return {made, [device](void* memory) {
            try {
              const CurrentDevice there(device);
              cudaFree(memory);
            } catch (const Failure&) {  // the run time may be gone before
            }
          }};
}

void refuse_capture(int device, Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(native(stream), &status);
  if (error == cudaErrorStreamCaptureImplicit || status != cudaStreamCaptureStatusNone) {
    cudaGetLastError();
    throw Failure{Code::kCapturing, static_cast<uint64_t>(device)};
  }
  check(error);
}

namespace {

struct StreamOf {
  StreamOf(int device, Stream stream) : current(device) { refuse_capture(device, stream); }
  CurrentDevice current;
};

}  // namespace

void copy_to_host(void* to, const void* from, size_t n_bytes, int device, Stream stream) {
  const StreamOf on(device, stream);
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToHost, native(stream)));
  check(cudaStreamSynchronize(native(stream)));
}

void copy_to_device(void* to, const void* from, size_t n_bytes, int device, Stream stream) {
  const StreamOf on(device, stream);
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyHostToDevice, native(stream)));
  check(cudaStreamSynchronize(native(stream)));
}

void copy_on_device(void* to, const void* from, size_t n_bytes, int device, Stream stream) {
  const StreamOf on(device, stream);
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToDevice, native(stream)));
}

void wait(int device, Stream stream) {
  const StreamOf on(device, stream);
  check(cudaStreamSynchronize(native(stream)));
}

uint64_t emulate([[maybe_unused]] const char* what, [[maybe_unused]] uint64_t value) {
#if defined(RESFED_CUDA_EMULATED)
  return emulator::control(what, value);
#else
  return 0;
#endif
}

}  // namespace resfed::cuda

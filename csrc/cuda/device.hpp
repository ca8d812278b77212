// The CUDA backend as host code sees it. No CUDA headers, and nothing here needs a driver to be
// loaded: unavailable_reason() says whether the rest can be called.
//
// All functions take the number of a device and a stream of it, and leave the calling thread's
// current device as it was (see CurrentDevice). They throw Failure: kCuda for what the run time
// reports, kDeviceMemory where memory ran out, kCapturing before anything is done if the stream is
// being captured into a graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace resfed::cuda {

using Stream = void*;  // a cudaStream_t; null is the legacy default stream

// Why CUDA cannot be used by this build on this machine; empty when it can. Never throws.
std::string unavailable_reason();

// The run time's text for a kCuda failure.
std::string error_text(int error);

// Whether kernels run in the emulator that tests use.
bool is_emulated();

// A device as the thread's current one, and then the one before. If that has no context it is not
// set again, for this would make one, of some 500 MB: then the device stays the current one.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool sets_back_ = false;
};

// New memory of the run time's, null for no bytes. To free it waits for all that the device does.
std::shared_ptr<void> allocate(int device, size_t n_bytes);

// Throws kCapturing if the stream, of the current device, is being captured.
void refuse_capture(int device, Stream stream);

// In the order of the stream. The first two return when the copy is done.
void copy_to_host(void* to, const void* from, size_t n_bytes, int device, Stream stream);
void copy_to_device(void* to, const void* from, size_t n_bytes, int device, Stream stream);
void copy_on_device(void* to, const void* from, size_t n_bytes, int device, Stream stream);

// Returns when all that was put into the stream before is done.
void wait(int device, Stream stream);

// For tests of the emulated build: see emulator::control(). Does nothing elsewhere.
uint64_t emulate(const char* what, uint64_t value);

}  // namespace resfed::cuda

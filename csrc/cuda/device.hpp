// The CUDA backend as host code sees it. No CUDA headers, and nothing here needs a driver to be
// loaded: unavailable_reason() says whether the rest can be called.
//
// All functions take the number of a device and a stream of it, and leave the calling thread's
// current device as it was. They throw Failure: kCuda for what the run time reports, kDeviceMemory
// where memory ran out.
#pragma once

#include <cstddef>
#include <string>

namespace resfed::cuda {

using Stream = void*;  // a cudaStream_t; null is the legacy default stream

// Why CUDA cannot be used by this build on this machine; empty when it can. Never throws.
std::string unavailable_reason();

// The run time's text for a kCuda failure.
std::string error_text(int error);

// Whether kernels run in the emulator that tests use.
bool is_emulated();

// Memory on a device, freed with the object.
class Memory {
 public:
  Memory() = default;
  Memory(int device, size_t n_bytes);
  Memory(Memory&& other) noexcept { *this = static_cast<Memory&&>(other); }
  Memory& operator=(Memory&& other) noexcept;
  ~Memory();

  void* data() const { return data_; }
  size_t size() const { return n_bytes_; }

 private:
  void* data_ = nullptr;
  size_t n_bytes_ = 0;
  int device_ = 0;
};

// In the order of the stream. The first two return when the copy is done.
void copy_to_host(void* to, const void* from, size_t n_bytes, int device, Stream stream);
void copy_to_device(void* to, const void* from, size_t n_bytes, int device, Stream stream);
void copy_on_device(void* to, const void* from, size_t n_bytes, int device, Stream stream);

// Returns when all that was put into the stream before is done.
void wait(int device, Stream stream);

// For tests of the emulated build: allocations fail once so much is held. Does nothing elsewhere.
void set_memory_limit(size_t n_bytes);

}  // namespace resfed::cuda

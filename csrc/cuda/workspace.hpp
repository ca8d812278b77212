// What calls keep on a device for the next ones, and the lease of it for one call. No CUDA headers.
#pragma once

#include <functional>
#include <memory>

#include "cuda/device.hpp"
#include "cuda/lanes.hpp"

namespace resfed::cuda {

// Host memory that a device reads and writes by itself.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(size_t n_bytes);
  PinnedMemory(PinnedMemory&& other) noexcept { *this = static_cast<PinnedMemory&&>(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept;
  ~PinnedMemory();

  void* data() const { return data_; }
  size_t size() const { return n_bytes_; }

 private:
  void* data_ = nullptr;
  size_t n_bytes_ = 0;
};

// Where a workspace takes memory from, in order of the calling thread's current stream; null where
// there is none, and the run time is asked. An allocator that keeps what was freed, as libraries'
// do, leaves the run time little.
using Allocator = std::function<std::shared_ptr<void>(int device, size_t n_bytes)>;
void set_allocator(Allocator allocator);

// New memory of it, or of the run time's; null for no bytes. Throws kDeviceMemory.
std::shared_ptr<void> take_memory(int device, size_t n_bytes);

struct Workspace;

// One call's use of a device's workspace. Waits until the calls before are through with it, on
// whatever stream they were; makes the device the thread's current one.
class WorkspaceLease {
 public:
  WorkspaceLease(int device, Stream stream);
  ~WorkspaceLease();
  WorkspaceLease(const WorkspaceLease&) = delete;
  WorkspaceLease& operator=(const WorkspaceLease&) = delete;

  int device() const { return device_; }
  Stream stream() const { return stream_; }
  unsigned n_blocks() const;                    // of 256 threads that fill the device
  const DeviceTrained* trained_tables() const;  // on the device

  // Memory of at least n_bytes, each kind once at a time: what it held is lost, and what uses it
  // must have ended.
  void* scratch(size_t n_bytes);       // on the device
  void* coded(size_t n_bytes);         // on the device
  void* tables(size_t n_bytes);        // on the device
  void* staged(size_t n_bytes);        // on the device
  void* lossless(size_t n_bytes);      // on the device
  void* changes(size_t n_bytes);       // on the device
  void* host_tables(size_t n_bytes);   // pinned
  void* host_staged(size_t n_bytes);   // pinned
  void* host_results(size_t n_bytes);  // pinned

  void copy_in(void* device, const void* host, size_t n_bytes);
  void copy(void* to, const void* from, size_t n_bytes);  // on the device
  void copy_out(void* host, const void* device, size_t n_bytes);
  void wait();  // for all of the stream so far

 private:
  int device_;
  Stream stream_;
  CurrentDevice current_;
  std::shared_ptr<Workspace> workspace_;
};

// Frees what calls keep for the next ones, on all devices.
void release_workspace();

}  // namespace resfed::cuda

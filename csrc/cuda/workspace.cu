#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "cuda/launch.cuh"
#include "cuda/workspace.hpp"

namespace resfed::cuda {

PinnedMemory::PinnedMemory(size_t n_bytes) : n_bytes_(n_bytes) {
  if (n_bytes > 0 && cudaMallocHost(&data_, n_bytes) != cudaSuccess) {
    cudaGetLastError();
    throw std::bad_alloc();
  }
}

PinnedMemory& PinnedMemory::operator=(PinnedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(n_bytes_, other.n_bytes_);
  return *this;
}

PinnedMemory::~PinnedMemory() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

namespace {

Allocator& allocator() {
  static auto* const set = new Allocator;  // never destroyed, as below
  return *set;
}

}  // namespace

void set_allocator(Allocator set) { allocator() = std::move(set); }

std::shared_ptr<void> take_memory(int device, size_t n_bytes) {
  std::shared_ptr<void> memory;
  if (allocator()) memory = allocator()(device, n_bytes);
  return memory != nullptr ? memory : allocate(device, n_bytes);
}

namespace {

// Memory that calls keep.
struct CachedAllocation {
  std::shared_ptr<void> data;
  size_t n_bytes = 0;

  CachedAllocation() = default;
  CachedAllocation(int device, size_t n) : data(take_memory(device, n)), n_bytes(n) {}
};

}  // namespace

struct Workspace {
  Workspace(int device, Stream stream) {
    int n_processors = 0;
    check(cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device));
    n_blocks = 8 * static_cast<unsigned>(n_processors);
    const auto tables = std::make_unique<DeviceTrained>();
    for (uint32_t f = 0; f < kFamilies; ++f) {
      for (uint32_t set = 0; set < kTrainedSets; ++set) {
        tables->starts[f][set].fill(resfed::trained_tables().sets[f][set], static_cast<Family>(f));
      }
    }
    std::memcpy(tables->costs, resfed::trained_tables().costs, sizeof tables->costs);
    trained = CachedAllocation(device, sizeof(DeviceTrained));
    copy_to_device(trained.data.get(), tables.get(), sizeof(DeviceTrained), device, stream);
    check(cudaEventCreateWithFlags(&idle, cudaEventDisableTiming));
  }
  ~Workspace() { cudaEventDestroy(idle); }

  std::mutex mutex;
  unsigned n_blocks = 0;
  CachedAllocation trained, scratch, coded, tables, staged, lossless, changes;
  PinnedMemory host_tables, host_staged, host_results;
  cudaEvent_t idle = nullptr;
};

namespace {

std::mutex registry_mutex;
// Never destroyed: at the end of the process the run time may be gone before.
std::map<int, std::shared_ptr<Workspace>>& registry() {
  static auto* const workspaces = new std::map<int, std::shared_ptr<Workspace>>;
  return *workspaces;
}

std::shared_ptr<Workspace> workspace_of(int device, Stream stream) {
  const std::lock_guard lock(registry_mutex);
  const auto found = registry().find(device);
  if (found != registry().end()) return found->second;
  return registry()[device] = std::make_shared<Workspace>(device, stream);
}

// A little more than asked for, so that calls that grow slowly do not allocate every time.
size_t rounded(size_t n_bytes) { return n_bytes + n_bytes / 16 + 4096; }

// The emulator makes sure of it that nobody counts on what memory held.
void* forgotten(void* memory, [[maybe_unused]] size_t n_bytes) {
#if defined(RESFED_CUDA_EMULATED)
  emulator::forget(memory, n_bytes);
#endif
  return memory;
}

void* grown(CachedAllocation& memory, size_t n_bytes, int device) {
  if (memory.n_bytes < n_bytes) {
    memory = CachedAllocation();
    memory = CachedAllocation(device, rounded(n_bytes));
  }
  return forgotten(memory.data.get(), n_bytes);
}

void* grown(PinnedMemory& memory, size_t n_bytes) {
  if (memory.size() < n_bytes) {
    memory = PinnedMemory();
    memory = PinnedMemory(rounded(n_bytes));
  }
  return forgotten(memory.data(), n_bytes);
}

}  // namespace

WorkspaceLease::WorkspaceLease(int device, Stream stream)
    : device_(device), stream_(stream), current_(device) {
  refuse_capture(device, stream);
  workspace_ = workspace_of(device, stream);
  workspace_->mutex.lock();
  if (const cudaError_t error = cudaEventSynchronize(workspace_->idle); error != cudaSuccess) {
    workspace_->mutex.unlock();
    check(error);
  }
}

WorkspaceLease::~WorkspaceLease() {
  if (cudaEventRecord(workspace_->idle, native(stream_)) != cudaSuccess) {
    cudaStreamSynchronize(native(stream_));
  }
  workspace_->mutex.unlock();
}

unsigned WorkspaceLease::n_blocks() const { return workspace_->n_blocks; }
const DeviceTrained* WorkspaceLease::trained_tables() const {
  return static_cast<const DeviceTrained*>(workspace_->trained.data.get());
}

void* WorkspaceLease::scratch(size_t n_bytes) {
  return grown(workspace_->scratch, n_bytes, device_);
}
void* WorkspaceLease::coded(size_t n_bytes) { return grown(workspace_->coded, n_bytes, device_); }
void* WorkspaceLease::tables(size_t n_bytes) { return grown(workspace_->tables, n_bytes, device_); }
void* WorkspaceLease::staged(size_t n_bytes) { return grown(workspace_->staged, n_bytes, device_); }
void* WorkspaceLease::lossless(size_t n_bytes) {
  return grown(workspace_->lossless, n_bytes, device_);
}
void* WorkspaceLease::changes(size_t n_bytes) {
  return grown(workspace_->changes, n_bytes, device_);
}
void* WorkspaceLease::host_tables(size_t n_bytes) {
  return grown(workspace_->host_tables, n_bytes);
}
void* WorkspaceLease::host_staged(size_t n_bytes) {
  return grown(workspace_->host_staged, n_bytes);
}
void* WorkspaceLease::host_results(size_t n_bytes) {
  return grown(workspace_->host_results, n_bytes);
}

void WorkspaceLease::copy_in(void* device, const void* host, size_t n_bytes) {
  check(cudaMemcpyAsync(device, host, n_bytes, cudaMemcpyHostToDevice, native(stream_)));
}
void WorkspaceLease::copy(void* to, const void* from, size_t n_bytes) {
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToDevice, native(stream_)));
}
void WorkspaceLease::copy_out(void* host, const void* device, size_t n_bytes) {
  check(cudaMemcpyAsync(host, device, n_bytes, cudaMemcpyDeviceToHost, native(stream_)));
}
void WorkspaceLease::wait() { check(cudaStreamSynchronize(native(stream_))); }

void release_workspace() {
  std::map<int, std::shared_ptr<Workspace>> released;
  {
    const std::lock_guard lock(registry_mutex);
    released.swap(registry());
  }
  for (auto& [device, workspace] : released) {
    const CurrentDevice current(device);
    {
      const std::lock_guard lock(workspace->mutex);  // a call that runs keeps it until it ends
      cudaEventSynchronize(workspace->idle);
    }
    workspace.reset();
  }
}

}  // namespace resfed::cuda

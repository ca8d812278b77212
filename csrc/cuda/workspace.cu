#include <map>
#include <mutex>
#include <vector>

#include "core/context.hpp"
#include "core/initial_states.hpp"
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

struct Workspace {
  explicit Workspace(int device) {
    int n_processors = 0;
    check(cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device));
    n_blocks = 8 * static_cast<unsigned>(n_processors);
    std::vector<Probability> contexts;
    for (const InitialState state : kInitialSliceStates) {
      contexts.push_back(initial_probability(state));
    }
    initial = Memory(device, contexts.size() * sizeof(Probability));
    copy_to_device(initial.data(), contexts.data(), initial.size(), device, nullptr);
    check(cudaEventCreateWithFlags(&idle, cudaEventDisableTiming));
  }
  ~Workspace() { cudaEventDestroy(idle); }

  std::mutex mutex;
  unsigned n_blocks = 0;
  Memory initial, scratch, tables, staged;
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

std::shared_ptr<Workspace> workspace_of(int device) {
  const std::lock_guard lock(registry_mutex);
  std::shared_ptr<Workspace>& workspace = registry()[device];
  if (workspace == nullptr) workspace = std::make_shared<Workspace>(device);
  return workspace;
}

// A little more than asked for, so that calls that grow slowly do not allocate every time.
size_t rounded(size_t n_bytes) { return n_bytes + n_bytes / 16 + 4096; }

void* grown(Memory& memory, size_t n_bytes, int device) {
  if (memory.size() < n_bytes) {
    memory = Memory();
    memory = Memory(device, rounded(n_bytes));
  }
  return memory.data();
}

void* grown(PinnedMemory& memory, size_t n_bytes) {
  if (memory.size() < n_bytes) {
    memory = PinnedMemory();
    memory = PinnedMemory(rounded(n_bytes));
  }
  return memory.data();
}

}  // namespace

Turn::Turn(int device, Stream stream) : device_(device), stream_(stream) {
  check(cudaGetDevice(&before_));
  check(cudaSetDevice(device));
  try {
    workspace_ = workspace_of(device);
    workspace_->mutex.lock();
    if (const cudaError_t error = cudaEventSynchronize(workspace_->idle); error != cudaSuccess) {
      workspace_->mutex.unlock();
      check(error);
    }
  } catch (...) {
    cudaSetDevice(before_);
    throw;
  }
}

Turn::~Turn() {
  cudaEventRecord(workspace_->idle, native(stream_));
  workspace_->mutex.unlock();
  cudaSetDevice(before_);
}

unsigned Turn::n_blocks() const { return workspace_->n_blocks; }
const Probability* Turn::initial() const {
  return static_cast<const Probability*>(workspace_->initial.data());
}

void* Turn::scratch(size_t n_bytes) { return grown(workspace_->scratch, n_bytes, device_); }
void* Turn::tables(size_t n_bytes) { return grown(workspace_->tables, n_bytes, device_); }
void* Turn::staged(size_t n_bytes) { return grown(workspace_->staged, n_bytes, device_); }
void* Turn::host_tables(size_t n_bytes) { return grown(workspace_->host_tables, n_bytes); }
void* Turn::host_staged(size_t n_bytes) { return grown(workspace_->host_staged, n_bytes); }
void* Turn::host_results(size_t n_bytes) { return grown(workspace_->host_results, n_bytes); }

void Turn::copy_in(void* device, const void* host, size_t n_bytes) {
  check(cudaMemcpyAsync(device, host, n_bytes, cudaMemcpyHostToDevice, native(stream_)));
}
void Turn::copy_out(void* host, const void* device, size_t n_bytes) {
  check(cudaMemcpyAsync(host, device, n_bytes, cudaMemcpyDeviceToHost, native(stream_)));
}
void Turn::wait() { check(cudaStreamSynchronize(native(stream_))); }

void release_workspace() {
  std::map<int, std::shared_ptr<Workspace>> released;
  {
    const std::lock_guard lock(registry_mutex);
    released.swap(registry());
  }
  for (auto& [device, workspace] : released) {
    const std::lock_guard lock(workspace->mutex);  // a call that runs keeps it until it ends
    cudaEventSynchronize(workspace->idle);
  }
}

}  // namespace resfed::cuda

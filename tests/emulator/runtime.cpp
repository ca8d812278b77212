// Memory and streams of the emulator.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

namespace emulator {
namespace {

constexpr size_t kArenaBytes = size_t{1} << 40;  // of addresses, each used once
constexpr size_t kStaleBytes = size_t{4} << 20;
constexpr int kDevices = 2;

struct Settings {
  uint64_t memory_limit = ~uint64_t{0};
  uint64_t fail_in = ~uint64_t{0};
  uint64_t capturing = ~uint64_t{0};
  uint64_t launches = 0;
  uint64_t contexts = 0;
};
Settings settings;
thread_local int current_device = 0;

// One lock serializes all calls of the runtime.
std::recursive_mutex& lock_of_all() {
  static auto& mutex = *new std::recursive_mutex;
  return mutex;
}
using Lock = std::lock_guard<std::recursive_mutex>;

bool fails() { return settings.fail_in != ~uint64_t{0} && settings.fail_in-- == 0; }

// ---- memory

size_t page() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}
size_t in_pages(size_t n_bytes) { return (n_bytes + page() - 1) / page() * page(); }

struct Block {
  char* data;  // in the first page
  size_t n_bytes;
};
struct Memory {
  char* arena = nullptr;
  size_t used = 0;                     // of the arena
  std::map<char*, Block> held;         // by the first page
  std::map<const char*, size_t> host;  // pinned
  size_t total = 0;
  std::vector<char> stale;

  static bool covers(const void* at, size_t n_bytes, const char* begin, size_t size) {
    const auto* const first = static_cast<const char*>(at);
    return first >= begin && first + n_bytes <= begin + size;
  }
  // The allocation whose pages hold this address, or the end.
  auto block_at(const void* at) {
    auto found = held.upper_bound(static_cast<char*>(const_cast<void*>(at)));
    if (found == held.begin()) return held.end();
    --found;
    return covers(at, 1, found->first, in_pages(found->second.n_bytes)) ? found : held.end();
  }
  bool covers(const void* at, size_t n_bytes) {
    const auto found = block_at(at);
    return found != held.end() && covers(at, n_bytes, found->second.data, found->second.n_bytes);
  }
  bool is_pinned(const void* at) const {
    auto after = host.upper_bound(static_cast<const char*>(at));
    return after != host.begin() && (--after, covers(at, 1, after->first, after->second));
  }
};
Memory& memory() {
  static auto& m = *new Memory;
  return m;
}

void fill_as_fresh(char* to, size_t n_bytes) {
  const std::vector<char>& stale = memory().stale;
  if (is_asked_for("stale") && !stale.empty()) {
    for (size_t i = 0; i < n_bytes; i += stale.size()) {
      std::memcpy(to + i, stale.data(), std::min(stale.size(), n_bytes - i));
    }
  } else {
    std::memset(to, is_asked_for("zeros") ? 0 : is_asked_for("ones") ? 0xff : 0xa5, n_bytes);
  }
}

// Opens device memory that running tasks access, and closes it at their end.
volatile bool runs_tasks = false;
std::atomic_flag opening;
std::vector<std::pair<char*, size_t>>& opened() {
  static auto& pages = *new std::vector<std::pair<char*, size_t>>;
  return pages;
}
bool open(const void* at) {
  const auto found = memory().block_at(at);
  if (found == memory().held.end()) return false;
  const size_t n_bytes = in_pages(found->second.n_bytes);
  while (opening.test_and_set()) {
  }
  opened().emplace_back(found->first, n_bytes);
  opening.clear();
  return mprotect(found->first, n_bytes, PROT_READ | PROT_WRITE) == 0;
}
void close_all() {
  for (const auto& [pages, n_bytes] : opened()) mprotect(pages, n_bytes, PROT_NONE);
  opened().clear();
}

struct sigaction before;

// Opens memory of an allocation for running tasks. Otherwise prints the fault and restores the
// previous handler, which handles the repeated access.
void on_fault(int signal, siginfo_t* info, void*) {
  if (runs_tasks && open(info->si_addr)) return;
  const char* const text = runs_tasks
                               ? "emulator: a kernel accesses memory outside its allocations\n"
                           : Memory::covers(info->si_addr, 1, memory().arena, kArenaBytes)
                               ? "emulator: host code accesses device memory\n"
                               : "";
  if (write(STDERR_FILENO, text, std::strlen(text)) < 0) _exit(1);
  sigaction(signal, &before, nullptr);
}

bool make_arena() {
  Memory& m = memory();
  if (m.arena != nullptr) return true;
  void* const made =
      mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (made == MAP_FAILED) return false;
  m.arena = static_cast<char*>(made);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &before);
  return true;
}

// ---- streams

struct Task {
  cudaStream_t stream;
  uint64_t number;
  std::function<void()> run;
};
std::deque<Task>& tasks() {
  static auto& all = *new std::deque<Task>;
  return all;
}
uint64_t last_task = 0;

// The legacy default stream waits for all earlier operations in other streams, and later ones wait
// for it.
bool is_legacy(cudaStream_t stream) { return reinterpret_cast<uintptr_t>(stream) <= 1; }

// Runs all tasks up to and including this task of the stream.
void run_up_to(cudaStream_t stream, uint64_t number) {
  std::deque<Task>& all = tasks();
  uint64_t ordered = is_legacy(stream) ? number : 0;  // up to this number, all streams
  for (const Task& task : all) {
    if (task.number <= number && is_legacy(task.stream)) ordered = std::max(ordered, task.number);
  }
  runs_tasks = true;
  for (size_t i = 0; i < all.size();) {
    const bool due =
        all[i].number <= ordered || (all[i].number <= number && all[i].stream == stream);
    if (!due) {
      ++i;
      continue;
    }
    const Task task = std::move(all[i]);
    all.erase(all.begin() + static_cast<std::ptrdiff_t>(i));
    task.run();
  }
  runs_tasks = false;
  close_all();
}

void put(cudaStream_t stream, std::function<void()> run) {
  tasks().push_back({stream, ++last_task, std::move(run)});
  if (is_asked_for("at-once")) run_up_to(stream, last_task);
}

void run_all() { run_up_to(nullptr, last_task); }

void touch_context() { settings.contexts |= uint64_t{1} << current_device; }

// cuDevicePrimaryCtxGetState()
int context_state(int device, unsigned* flags, int* active) {
  const Lock lock(lock_of_all());
  *flags = 0;
  *active = static_cast<int>(settings.contexts >> device & 1);
  return 0;
}

}  // namespace

bool is_asked_for(const char* word) {
  static const std::string words = [] {
    const char* const given = std::getenv("RESFED_EMULATOR");
    std::string list = ",";
    list.append(given == nullptr ? "" : given).append(",");
    return list;
  }();
  std::string wanted = ",";
  wanted.append(word).append(",");
  return words.find(wanted) != std::string::npos;
}

uint64_t control(const char* what, uint64_t value) {
  const Lock lock(lock_of_all());
  const std::string name = what;
  if (name == "launches") return settings.launches;
  if (name == "contexts") return settings.contexts;
  if (name == "waiting") return tasks().size();
  uint64_t& setting = name == "memory_limit" ? settings.memory_limit
                      : name == "fail_in"    ? settings.fail_in
                                             : settings.capturing;
  return std::exchange(setting, value);
}

cudaError_t launch(unsigned n_blocks, unsigned n_threads, cudaStream_t stream,
                   std::function<void()> body) {
  const Lock lock(lock_of_all());
  touch_context();
  if (fails()) return cudaErrorLaunchFailure;
  ++settings.launches;
  put(stream, [=] { run(n_blocks, n_threads, body); });
  return cudaSuccess;
}

void forget(void* at, size_t n_bytes) {
  if (n_bytes == 0 || is_asked_for("stale")) return;  // it keeps stale results
  const Lock lock(lock_of_all());
  open(at);
  fill_as_fresh(static_cast<char*>(at), n_bytes);
  close_all();
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaGetDeviceCount(int* n) { return *n = kDevices, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return cudaErrorInvalidValue;
  const Lock lock(lock_of_all());
  current_device = device;
  touch_context();
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = is_asked_for("blocks") ? 3 : 1, cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(context_state);
  return *result = cudaDriverEntryPointSuccess, cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory (emulated)";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure (emulated)";
    default:
      return "invalid argument (emulated)";
  }
}

cudaError_t cudaMalloc(void** result, size_t n_bytes) {
  const Lock lock(lock_of_all());
  Memory& m = memory();
  touch_context();
  if (fails() || n_bytes > settings.memory_limit || m.total > settings.memory_limit - n_bytes ||
      !make_arena() || m.used + in_pages(n_bytes) + page() > kArenaBytes) {
    return cudaErrorMemoryAllocation;
  }
  char* const pages = m.arena + m.used;
  m.used += in_pages(n_bytes) + page();  // and a page that stays inaccessible
  if (mprotect(pages, in_pages(n_bytes), PROT_READ | PROT_WRITE) != 0) {
    return cudaErrorMemoryAllocation;
  }
  fill_as_fresh(pages, in_pages(n_bytes));
  mprotect(pages, in_pages(n_bytes), PROT_NONE);
  // Ends at the end of the last page, as far as alignment allows.
  char* const made = pages + (in_pages(n_bytes) - n_bytes) / 16 * 16;
  m.held[pages] = {made, n_bytes};
  m.total += n_bytes;
  *result = made;
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  if (address == nullptr) return cudaSuccess;
  const Lock lock(lock_of_all());
  Memory& m = memory();
  const auto found = m.block_at(address);
  if (found == m.held.end() || found->second.data != address) return cudaErrorInvalidValue;
  touch_context();
  run_all();  // as the CUDA runtime does
  char* const pages = found->first;
  const size_t n_bytes = found->second.n_bytes;
  if (is_asked_for("stale")) {
    mprotect(pages, in_pages(n_bytes), PROT_READ);
    const auto* const first = static_cast<const char*>(address);
    m.stale.assign(first, first + std::min(n_bytes, kStaleBytes));
  }
  m.total -= n_bytes;
  m.held.erase(found);
  mmap(pages, in_pages(n_bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
       -1, 0);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** result, size_t n_bytes) {
  const Lock lock(lock_of_all());
  *result = fails() ? nullptr : std::malloc(n_bytes);
  if (*result == nullptr) return cudaErrorMemoryAllocation;
  fill_as_fresh(static_cast<char*>(*result), n_bytes);
  memory().host[static_cast<const char*>(*result)] = n_bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* address) {
  const Lock lock(lock_of_all());
  touch_context();
  run_all();
  memory().host.erase(static_cast<const char*>(address));
  return std::free(address), cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (n_bytes == 0) return cudaSuccess;
  const Lock lock(lock_of_all());
  Memory& m = memory();
  touch_context();
  const bool to_device = kind != cudaMemcpyDeviceToHost;
  const bool from_device = kind != cudaMemcpyHostToDevice;
  if (fails() || (to_device && !m.covers(to, n_bytes)) ||
      (from_device && !m.covers(from, n_bytes))) {
    return cudaErrorInvalidValue;
  }
  if (!from_device && !m.is_pinned(from)) {  // the source may change after the call returns
    const auto* const first = static_cast<const char*>(from);
    put(stream, [to, bytes = std::vector<char>(first, first + n_bytes)] {
      std::memcpy(to, bytes.data(), bytes.size());
    });
    return cudaSuccess;
  }
  put(stream, [=] { std::memmove(to, from, n_bytes); });
  if (!to_device && !m.is_pinned(to)) run_up_to(stream, last_task);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(lock_of_all());
  touch_context();
  run_up_to(stream, last_task);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Lock lock(lock_of_all());
  const bool yes = reinterpret_cast<uintptr_t>(stream) == settings.capturing;
  *status = yes ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

struct EmulatedEvent {
  cudaStream_t stream = nullptr;
  uint64_t number = 0;
};
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = new EmulatedEvent, cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(lock_of_all());
  *event = {stream, last_task};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(lock_of_all());
  run_up_to(event->stream, event->number);
  return cudaSuccess;
}

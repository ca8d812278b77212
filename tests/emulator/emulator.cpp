#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_runtime.h"

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 128 << 10;

enum class Waits { kNot, kForWarp, kForBlock, kEnded };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  Waits waits = Waits::kNot;
  unsigned exchanges = 0;
};

struct Warp {
  uint64_t values[2][kWarp] = {};  // in turn, for a lane may be one exchange ahead
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  ucontext_t scheduler;
  size_t now = 0;
  const std::function<void()>* body = nullptr;
  uint64_t random = 1;

  uint64_t draw() { return random = random * 6364136223846793005ull + 1442695040888963407ull; }
};
thread_local Block* block = nullptr;

void enter() {
  (*block->body)();
  block->fibers[block->now].waits = Waits::kEnded;
  swapcontext(&block->fibers[block->now].context, &block->scheduler);
}

void wait(Waits what) {
  Fiber& fiber = block->fibers[block->now];
  fiber.waits = what;
  swapcontext(&fiber.context, &block->scheduler);
}

// Lets the fibers [first, last) go on if all that have not ended wait for the same.
bool release(size_t first, size_t last, Waits what) {
  bool any = false;
  for (size_t i = first; i < last; ++i) {
    if (block->fibers[i].waits == Waits::kEnded) continue;
    if (block->fibers[i].waits != what) return false;
    any = true;
  }
  for (size_t i = first; any && i < last; ++i) {
    if (block->fibers[i].waits == what) block->fibers[i].waits = Waits::kNot;
  }
  return any;
}

void run_block(Block& b, size_t n_threads) {
  for (size_t i = 0; i < n_threads; ++i) {
    Fiber& fiber = b.fibers[i];
    fiber.waits = Waits::kNot;
    fiber.exchanges = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, kStackBytes};
    makecontext(&fiber.context, enter, 0);
  }
  std::vector<size_t> order(n_threads);
  for (size_t i = 0; i < n_threads; ++i) order[i] = i;
  for (;;) {
    for (size_t i = n_threads; i > 1; --i) std::swap(order[i - 1], order[(b.draw() >> 33) % i]);
    bool moved = false;
    for (const size_t i : order) {
      if (b.fibers[i].waits != Waits::kNot) continue;
      b.now = i;
      threadIdx = {static_cast<unsigned>(i)};
      swapcontext(&b.scheduler, &b.fibers[i].context);
      moved = true;
    }
    for (size_t first = 0; first < n_threads; first += kWarp) {
      moved |= release(first, std::min<size_t>(first + kWarp, n_threads), Waits::kForWarp);
    }
    moved |= release(0, n_threads, Waits::kForBlock);
    if (moved) continue;
    for (size_t i = 0; i < n_threads; ++i) {
      if (b.fibers[i].waits == Waits::kEnded) continue;
      std::fprintf(stderr, "emulated kernel: threads wait for each other at different places\n");
      std::abort();
    }
    return;
  }
}

struct Memory {
  std::mutex mutex;
  std::map<const char*, size_t> held;  // by address
  size_t total = 0;
  size_t limit = static_cast<size_t>(-1);

  bool covers(const void* address, size_t n_bytes) {
    const auto* const at = static_cast<const char*>(address);
    auto after = held.upper_bound(at);
    if (after == held.begin()) return false;
    --after;
    return at + n_bytes <= after->first + after->second;
  }
};
Memory& memory() {
  static Memory m;
  return m;
}

}  // namespace

void run(dim3 grid, dim3 block_size, const std::function<void()>& body) {
  static std::mutex one_at_a_time;  // kernels have static variables in the place of shared memory
  const std::lock_guard lock(one_at_a_time);
  static Block& b = *new Block;
  b.body = &body;
  if (b.fibers.size() < block_size.x) b.fibers = std::vector<Fiber>(block_size.x);
  b.warps.assign((block_size.x + kWarp - 1) / kWarp, {});
  block = &b;
  gridDim = grid;
  blockDim = block_size;
  std::vector<unsigned> order(grid.x);
  for (unsigned i = 0; i < grid.x; ++i) order[i] = i;
  for (size_t i = grid.x; i > 1; --i) std::swap(order[i - 1], order[(b.draw() >> 33) % i]);
  for (const unsigned i : order) {
    blockIdx = {i};
    run_block(b, block_size.x);
  }
}

void wait_for_block() { wait(Waits::kForBlock); }
void wait_for_warp() { wait(Waits::kForWarp); }
unsigned lane() { return threadIdx.x % kWarp; }

const uint64_t* exchange(uint64_t mine) {
  Fiber& fiber = block->fibers[block->now];
  uint64_t* const values = block->warps[block->now / kWarp].values[fiber.exchanges++ & 1];
  values[lane()] = mine;
  wait_for_warp();
  return values;
}

void set_memory_limit(size_t n_bytes) { memory().limit = n_bytes; }

}  // namespace emulator

cudaError_t cudaMalloc(void** result, size_t n_bytes) {
  auto& m = emulator::memory();
  const std::lock_guard lock(m.mutex);
  if (n_bytes > m.limit || m.total > m.limit - n_bytes) return cudaErrorMemoryAllocation;
  void* const made = std::malloc(n_bytes);
  if (made == nullptr) return cudaErrorMemoryAllocation;
  std::memset(made, 0xa5, n_bytes);  // nobody may count on zeros
  m.held[static_cast<const char*>(made)] = n_bytes;
  m.total += n_bytes;
  *result = made;
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  auto& m = emulator::memory();
  const std::lock_guard lock(m.mutex);
  const auto found = m.held.find(static_cast<const char*>(address));
  if (found == m.held.end()) return address == nullptr ? cudaSuccess : cudaErrorInvalidValue;
  m.total -= found->second;
  m.held.erase(found);
  std::free(address);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** result, size_t n_bytes) {
  *result = std::malloc(n_bytes);
  return *result == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* address) { return std::free(address), cudaSuccess; }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  auto& m = emulator::memory();
  const std::lock_guard lock(m.mutex);
  const bool to_device = kind != cudaMemcpyDeviceToHost;
  const bool from_device = kind != cudaMemcpyHostToDevice;
  if (n_bytes > 0 &&
      ((to_device && !m.covers(to, n_bytes)) || (from_device && !m.covers(from, n_bytes)))) {
    return cudaErrorInvalidValue;
  }
  if (n_bytes > 0) std::memmove(to, from, n_bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t n_bytes, cudaStream_t) {
  auto& m = emulator::memory();
  const std::lock_guard lock(m.mutex);
  if (n_bytes > 0 && !m.covers(address, n_bytes)) return cudaErrorInvalidValue;
  if (n_bytes > 0) std::memset(address, value, n_bytes);
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory (emulated)"
         : error == cudaSuccess             ? "no error"
                                            : "invalid argument (emulated)";
}

// Kernels of the emulator: blocks are host threads, and their threads are fibers.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kBlocksAtOnce = 3;
constexpr size_t kStackBytes = 128 << 10;

enum class Waits { kNot, kForWarp, kForBlock, kEnded };

// An execution context. swapcontext() makes a system call for the signal mask each time, so only
// builds with a sanitizer use it.
struct Place {
  ucontext_t context;
  jmp_buf jump;
  bool begun = false;
};
void change(Place& from, Place& to) {
#if defined(__SANITIZE_ADDRESS__)
  swapcontext(&from.context, &to.context);
#else
  if (_setjmp(from.jump) != 0) return;
  from.begun = true;
  if (to.begun) _longjmp(to.jump, 1);
  setcontext(&to.context);
#endif
}

struct Fiber {
  Place place;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  Waits waits = Waits::kNot;
  unsigned exchanges = 0;
};

struct Warp {
  uint64_t values[2][kWarp] = {};  // alternating, since a lane may be one exchange ahead
};

// A multiprocessor: runs blocks one after another and reuses its fibers.
struct Processor {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  Place scheduler;
  size_t now = 0;
  const std::function<void()>* body = nullptr;
  uint64_t random = 1;

  uint64_t draw() { return random = random * 6364136223846793005ull + 1442695040888963407ull; }
};
thread_local Processor* processor = nullptr;

// A fiber may continue on another host thread with other thread_local variables, so separate
// functions read these again.
__attribute__((noinline)) void wait(Waits what) {
  Fiber& fiber = *processor->fibers[processor->now];
  fiber.waits = what;
  change(fiber.place, processor->scheduler);
}

__attribute__((noinline)) void run_body() { (*processor->body)(); }
void enter() {
  for (;;) {
    run_body();
    wait(Waits::kEnded);
  }
}

void make_fibers(Processor& p, size_t n) {
  while (p.fibers.size() < n) {
    auto fiber = std::make_unique<Fiber>();
    getcontext(&fiber->place.context);
    fiber->place.context.uc_stack = {fiber->stack.get(), 0, kStackBytes};
    makecontext(&fiber->place.context, enter, 0);
    p.fibers.push_back(std::move(fiber));
  }
}

// Continues the fibers [first, last) if all that have not ended wait for the same barrier.
bool release(Processor& p, size_t first, size_t last, Waits what) {
  bool any = false;
  for (size_t i = first; i < last; ++i) {
    if (p.fibers[i]->waits == Waits::kEnded) continue;
    if (p.fibers[i]->waits != what) return false;
    any = true;
  }
  for (size_t i = first; any && i < last; ++i) {
    if (p.fibers[i]->waits == what) p.fibers[i]->waits = Waits::kNot;
  }
  return any;
}

void run_block(Processor& p, size_t n_threads) {
  for (size_t i = 0; i < n_threads; ++i) {
    p.fibers[i]->waits = Waits::kNot;
    p.fibers[i]->exchanges = 0;
  }
  std::vector<size_t> order(n_threads);
  for (size_t i = 0; i < n_threads; ++i) order[i] = i;
  for (;;) {
    for (size_t i = n_threads; i > 1; --i) std::swap(order[i - 1], order[(p.draw() >> 33) % i]);
    bool moved = false;
    for (const size_t i : order) {
      if (p.fibers[i]->waits != Waits::kNot) continue;
      p.now = i;
      threadIdx = {static_cast<unsigned>(i)};
      change(p.scheduler, p.fibers[i]->place);
      moved = true;
    }
    for (size_t first = 0; first < n_threads; first += kWarp) {
      moved |= release(p, first, std::min<size_t>(first + kWarp, n_threads), Waits::kForWarp);
    }
    moved |= release(p, 0, n_threads, Waits::kForBlock);
    if (moved) continue;
    for (size_t i = 0; i < n_threads; ++i) {
      if (p.fibers[i]->waits == Waits::kEnded) continue;
      std::fprintf(stderr, "emulated kernel: threads wait for each other at different places\n");
      std::abort();
    }
    return;
  }
}

}  // namespace

// The caller ensures that only one kernel runs at a time.
void run(unsigned n_blocks, unsigned n_threads, const std::function<void()>& body) {
  static auto& processors = *new std::vector<Processor>(kBlocksAtOnce);
  static uint64_t random = 1;
  std::vector<unsigned> order(n_blocks);
  for (unsigned i = 0; i < n_blocks; ++i) order[i] = i;
  for (size_t i = n_blocks; i > 1; --i) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    std::swap(order[i - 1], order[(random >> 33) % i]);
  }
  std::atomic<unsigned> taken = 0;
  const auto work = [&](Processor& p) {
    processor = &p;
    p.body = &body;
    make_fibers(p, n_threads);
    p.warps.assign((n_threads + kWarp - 1) / kWarp, {});
    gridDim = {n_blocks};
    blockDim = {n_threads};
    for (unsigned i = taken++; i < n_blocks; i = taken++) {
      blockIdx = {order[i]};
      run_block(p, n_threads);
    }
  };
  std::vector<std::jthread> others;
  for (unsigned i = 1; i < std::min(n_blocks, kBlocksAtOnce); ++i) {
    others.emplace_back([&, i] { work(processors[i]); });
  }
  work(processors[0]);
}

void wait_for_block() { wait(Waits::kForBlock); }
void wait_for_warp() { wait(Waits::kForWarp); }
unsigned lane() { return threadIdx.x % kWarp; }

const uint64_t* exchange(uint64_t mine) {
  Fiber& fiber = *processor->fibers[processor->now];
  uint64_t* const values = processor->warps[processor->now / kWarp].values[fiber.exchanges++ & 1];
  values[lane()] = mine;
  wait_for_warp();
  return values;
}

}  // namespace emulator

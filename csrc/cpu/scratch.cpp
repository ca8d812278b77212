#include "cpu/scratch.hpp"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <mutex>

namespace resfed {
namespace {

constexpr size_t kWorthKeeping = size_t{1} << 15;  // smaller buffers malloc keeps itself
constexpr size_t kMostKept = size_t{1} << 25;      // of all buffers together
constexpr size_t kMostBuffers = 64;

// Four sizes between powers of two, so that similar requests get the same buffer.
size_t rounded(size_t n_bytes) {
  const size_t grain = std::bit_floor(n_bytes) / 4;
  return (n_bytes + grain - 1) / grain * grain;
}

struct Buffer {
  void* memory;
  size_t n_bytes;
};

// The oldest first.
struct Pool {
  std::mutex mutex;
  Buffer buffers[kMostBuffers];
  size_t n_buffers = 0;
  size_t n_bytes = 0;

  void* remove(size_t which) {
    void* const memory = buffers[which].memory;
    n_bytes -= buffers[which].n_bytes;
    std::copy(buffers + which + 1, buffers + n_buffers, buffers + which);
    --n_buffers;
    return memory;
  }
};

// Never destroyed: threads may still be at work when the process ends. Who finds it busy does
// without it, so nobody waits, not even in a process that was forked meanwhile.
Pool& pool() {
  static Pool* const pool = new Pool;
  return *pool;
}

}  // namespace

void* take_scratch(size_t n_bytes) {
  if (n_bytes >= kWorthKeeping) {
    n_bytes = rounded(n_bytes);
    Pool& s = pool();
    const std::unique_lock lock(s.mutex, std::try_to_lock);
    for (size_t i = lock ? s.n_buffers : 0; i-- > 0;) {
      if (s.buffers[i].n_bytes == n_bytes) return s.remove(i);
    }
  }
  if (void* const memory = std::malloc(n_bytes > 0 ? n_bytes : 1)) return memory;
  throw std::bad_alloc();
}

void give_back_scratch(void* memory, size_t n_bytes) noexcept {
  if (n_bytes >= kWorthKeeping && rounded(n_bytes) <= kMostKept) {
    n_bytes = rounded(n_bytes);
    Pool& s = pool();
    const std::unique_lock lock(s.mutex, std::try_to_lock);
    if (lock) {
      while (s.n_buffers == kMostBuffers || s.n_bytes + n_bytes > kMostKept) std::free(s.remove(0));
      s.buffers[s.n_buffers++] = {memory, n_bytes};
      s.n_bytes += n_bytes;
      return;
    }
  }
  std::free(memory);
}

}  // namespace resfed

#include "cpu/scratch.hpp"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <mutex>

namespace resfed {
namespace {

constexpr size_t kWorthKeeping = size_t{1} << 15;  // smaller pieces malloc keeps itself
constexpr size_t kMostKept = size_t{1} << 25;      // of all pieces together
constexpr size_t kMostPieces = 64;

// Four sizes between powers of two, so that similar requests get the same piece.
size_t rounded(size_t n_bytes) {
  const size_t grain = std::bit_floor(n_bytes) / 4;
  return (n_bytes + grain - 1) / grain * grain;
}

struct Piece {
  void* memory;
  size_t n_bytes;
};

// The oldest first.
struct Stock {
  std::mutex mutex;
  Piece pieces[kMostPieces];
  size_t n_pieces = 0;
  size_t n_bytes = 0;

  void* remove(size_t which) {
    void* const memory = pieces[which].memory;
    n_bytes -= pieces[which].n_bytes;
    std::copy(pieces + which + 1, pieces + n_pieces, pieces + which);
    --n_pieces;
    return memory;
  }
};

// Never destroyed: threads may still be at work when the process ends. Who finds it busy does
// without it, so nobody waits, not even in a process that was forked meanwhile.
Stock& stock() {
  static Stock* const stock = new Stock;
  return *stock;
}

}  // namespace

void* take_scratch(size_t n_bytes) {
  if (n_bytes >= kWorthKeeping) {
    n_bytes = rounded(n_bytes);
    Stock& s = stock();
    const std::unique_lock lock(s.mutex, std::try_to_lock);
    for (size_t i = lock ? s.n_pieces : 0; i-- > 0;) {
      if (s.pieces[i].n_bytes == n_bytes) return s.remove(i);
    }
  }
  if (void* const memory = std::malloc(n_bytes > 0 ? n_bytes : 1)) return memory;
  throw std::bad_alloc();
}

void give_back_scratch(void* memory, size_t n_bytes) noexcept {
  if (n_bytes >= kWorthKeeping && rounded(n_bytes) <= kMostKept) {
    n_bytes = rounded(n_bytes);
    Stock& s = stock();
    const std::unique_lock lock(s.mutex, std::try_to_lock);
    if (lock) {
      while (s.n_pieces == kMostPieces || s.n_bytes + n_bytes > kMostKept) std::free(s.remove(0));
      s.pieces[s.n_pieces++] = {memory, n_bytes};
      s.n_bytes += n_bytes;
      return;
    }
  }
  std::free(memory);
}

}  // namespace resfed

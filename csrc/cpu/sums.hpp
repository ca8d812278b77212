// The exact sums of numeric/exact_mean.hpp in memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "cpu/pages.hpp"
#include "cpu/residual.hpp"
#include "cpu/threads.hpp"
#include "numeric/exact_mean.hpp"

namespace resfed {

// Sums of 128 bits, made chunk by chunk when first touched; and, in chunks where a sum became
// larger than 2^kCarryLog2 units, 64 bits more for what was carried over. So none overflows before
// 2^37 contributions.
class Sums {
 public:
  explicit Sums(uint64_t n_elems)
      : chunks_((n_elems + kChunkElems - 1) / kChunkElems), carries_(chunks_.size()) {}
  ~Sums() { clear(); }
  Sums(const Sums&) = delete;
  Sums& operator=(const Sums&) = delete;

  // Makes the chunks from `first` to `last` that are not there; several threads may.
  void touch(uint64_t first, uint64_t last) {
    for (uint64_t s = first / kChunkElems; s <= last / kChunkElems; ++s) {
      if (chunks_[s].load(std::memory_order_relaxed) != nullptr) continue;
      auto* const made = static_cast<int128*>(take_pages(kBytes));
      int128* none = nullptr;
      if (!chunks_[s].compare_exchange_strong(none, made)) give_back_pages(made, kBytes);
    }
  }
  int128& at(uint64_t place) {
    return chunks_[place / kChunkElems].load(std::memory_order_relaxed)[place % kChunkElems];
  }
  // Null where nothing was touched.
  const int128* chunk(uint64_t place) const { return chunks_[place / kChunkElems].load(); }
  // Null where nothing was carried over.
  const int64_t* carries(uint64_t place) const { return carries_[place / kChunkElems].get(); }

  // Changes no sum's value, only where it is kept.
  void carry_over() {
    parallel_for(chunks_.size(), [&](size_t s) {
      int128* const sums = chunks_[s].load();
      if (sums == nullptr) return;
      constexpr int128 kMost = int128{1} << kCarryLog2;
      if (std::none_of(sums, sums + kChunkElems,
                       [](int128 sum) { return sum >= kMost || sum < 0 - kMost; }))
        return;
      if (carries_[s] == nullptr) carries_[s] = std::make_unique<int64_t[]>(kChunkElems);
      for (uint64_t i = 0; i < kChunkElems; ++i) resfed::carry_over(sums + i, &carries_[s][i]);
    });
  }

 private:
  void clear() {
    for (auto& chunk : chunks_) {
      if (int128* const sums = chunk.exchange(nullptr)) give_back_pages(sums, kBytes);
    }
  }
  static constexpr size_t kBytes = kChunkElems * sizeof(int128);

  std::vector<std::atomic<int128*>> chunks_;
  std::vector<std::unique_ptr<int64_t[]>> carries_;
};

}  // namespace resfed

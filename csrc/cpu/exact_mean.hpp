// The arithmetic of weighted means whose sums are exact, so that no order of adding changes them.
//
// A float element's contribution is the float64 product weight * (new - reference), truncated to a
// multiple of 2^-80 and summed in 128 bits. An integer element's is the integer weight * 2^40,
// rounded, times the difference.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "cpu/pages.hpp"
#include "cpu/residual.hpp"
#include "cpu/threads.hpp"
#include "numeric/residual.hpp"

namespace resfed {

__extension__ typedef __int128 int128;

constexpr int kFloatUnitLog2 = -80;
constexpr double kFloatUnit = 0x1p-80;
constexpr double kWeightUnits = 0x1p40;

// A contribution may be as large, in value and in units of 2^-40; larger ones are refused whatever
// the sums are.
constexpr double kFloatLimit = 0x1p45;
constexpr double kIntegerLimit = 0x1p125;

// A sum's 128 bits are not exceeded as long as the magnitudes added since it was last carried over
// stay below twice the limits; carrying over leaves at most 2^kCarryLog2 units.
constexpr int kCarryLog2 = 100;

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
      for (uint64_t i = 0; i < kChunkElems; ++i) {
        carries_[s][i] += static_cast<int64_t>(sums[i] >> kCarryLog2);
        sums[i] &= kMost - 1;
      }
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

inline double as_double(float value) { return value; }
inline double as_double(double value) { return value; }
inline double as_double(Half value) { return widen(value); }
inline double as_double(BFloat16 value) { return widen(value); }

inline void round_to(double value, float* out) { *out = static_cast<float>(value); }
inline void round_to(double value, double* out) { *out = value; }
inline void round_to(double value, Half* out) { *out = narrow_to_half(static_cast<float>(value)); }
inline void round_to(double value, BFloat16* out) {
  *out = narrow_to_bfloat16(static_cast<float>(value));
}

// Magnitudes ordered as integers: no number is above infinity, and a NaN is.
inline uint64_t magnitude_bits(double value) { return double_bits(value) & 0x7fffffffffffffffull; }

// A double below 2^47 in units of 2^-80, truncated. Signs are as good as random: no branch on them.
inline int128 to_units(double value) {
  const uint64_t bits = double_bits(value);
  const int exponent = static_cast<int>((bits >> 52) & 0x7ff);
  const int128 mantissa = (bits & 0xfffffffffffffull) | 0x10000000000000ull;
  const int shift = exponent - 1075 - kFloatUnitLog2;
  const int128 units = shift >= 0 ? mantissa << shift : mantissa >> std::min(-shift, 63);
  const int128 sign = -static_cast<int128>(bits >> 63);
  return (units ^ sign) - sign;
}

// An integer or bool element as a number, from its bits.
inline int128 integer_value(uint64_t bits, uint32_t elem_bytes, bool is_signed) {
  if (!is_signed) return static_cast<int128>(bits);
  const unsigned unused = 64 - 8 * elem_bytes;
  return static_cast<int64_t>(bits << unused) >> unused;
}

// carry * 2^kCarryLog2 + sum, cut in one way only: `low` lies in [0, 2^kCarryLog2).
struct WideSum {
  int128 high, low;
  WideSum(int64_t carry, int128 sum)
      : high(carry + (sum >> kCarryLog2)), low(sum & ((int128{1} << kCarryLog2) - 1)) {}
};

// The nearest double.
inline double nearest_double(int64_t carry, int128 sum) {
  if (carry == 0) return static_cast<double>(sum);
  const WideSum wide(carry, sum);
  constexpr int kDropped = 38;  // of more than 80 bits; that there were any is kept in the last one
  const int128 dropped = wide.low & ((int128{1} << kDropped) - 1);
  const int128 top = wide.high * (int128{1} << (kCarryLog2 - kDropped)) + (wide.low >> kDropped);
  if (top < int128{1} << 80 && top > -(int128{1} << 80)) {  // fits as it is
    return static_cast<double>(top * (int128{1} << kDropped) + dropped);
  }
  return static_cast<double>(top | static_cast<int128>(dropped != 0)) * 0x1p38;
}

// carry and sum / weight to the nearest; of two as near, the one that makes `base` plus it even.
inline int128 rounded_quotient(int64_t carry, int128 sum, int128 weight, int128 base) {
  WideSum wide(carry, carry == 0 ? 0 : sum);
  int128 dividend = carry == 0 ? sum : wide.high;
  int128 quotient = dividend / weight;
  int128 rest = dividend % weight;
  if (rest < 0) {
    rest += weight;
    quotient -= 1;
  }
  for (int bit = carry == 0 ? 0 : kCarryLog2; bit-- > 0;) {  // long division, bit by bit
    rest = 2 * rest + (wide.low >> bit & 1);
    quotient = 2 * quotient + (rest >= weight ? 1 : 0);
    if (rest >= weight) rest -= weight;
  }
  const int128 other = weight - rest;
  const bool odd = ((base + quotient) & 1) != 0;
  return quotient + (rest > other || (rest == other && odd) ? 1 : 0);
}

}  // namespace resfed

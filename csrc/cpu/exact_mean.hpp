// The arithmetic of weighted means whose sums are exact, so that no order of adding changes them.
//
// A float element's contribution is the float64 product weight * (new - reference), truncated to a
// multiple of 2^-80 and summed in 128 bits. An integer element's is the integer weight * 2^40,
// rounded, times the difference.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "core/residual.hpp"
#include "cpu/residual.hpp"

namespace resfed {

__extension__ typedef __int128 int128;

constexpr int kFloatUnitLog2 = -80;
constexpr double kFloatUnit = 0x1p-80;
constexpr double kFloatSumLimit = 0x1p46;     // of absolute contributions: 2^126 units
constexpr double kIntegerSumLimit = 0x1p126;  // in units of 2^-40
constexpr double kWeightUnits = 0x1p40;

// 128-bit sums, made segment by segment when first touched.
class Sums {
 public:
  explicit Sums(uint64_t n_elems) : segments_((n_elems + kSegment - 1) / kSegment) {}
  ~Sums() { clear(); }
  Sums(const Sums&) = delete;
  Sums& operator=(const Sums&) = delete;

  // Makes the segments from `first` to `last` that are not there; several threads may.
  void touch(uint64_t first, uint64_t last) {
    for (uint64_t s = first / kSegment; s <= last / kSegment; ++s) {
      if (segments_[s].load(std::memory_order_relaxed) != nullptr) continue;
      // The system hands out zero pages when they are written to: memory follows what is touched.
      auto* const made = static_cast<int128*>(std::calloc(kSegment, sizeof(int128)));
      if (made == nullptr) throw std::bad_alloc();
      int128* none = nullptr;
      if (!segments_[s].compare_exchange_strong(none, made)) std::free(made);
    }
  }
  int128& at(uint64_t place) {
    return segments_[place / kSegment].load(std::memory_order_relaxed)[place % kSegment];
  }
  // Null where nothing was touched.
  const int128* segment(uint64_t place) const { return segments_[place / kSegment].load(); }
  void clear() {
    for (auto& segment : segments_) std::free(segment.exchange(nullptr));
  }

 private:
  std::vector<std::atomic<int128*>> segments_;
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

// sum / weight to the nearest; of two as near, the one that makes `base` plus it even.
inline int128 rounded_quotient(int128 sum, int128 weight, int128 base) {
  int128 quotient = sum / weight;
  int128 rest = sum % weight;
  if (rest < 0) {
    rest += weight;
    quotient -= 1;
  }
  const int128 other = weight - rest;
  const bool odd = ((base + quotient) & 1) != 0;
  return quotient + (rest > other || (rest == other && odd) ? 1 : 0);
}

}  // namespace resfed

// The arithmetic of weighted means whose sums are exact, so that no order of adding changes them.
//
// A float element's contribution is the float64 product weight * (new - reference), truncated to a
// multiple of 2^-80 and summed in 128 bits. An integer element's is the integer weight * 2^40,
// rounded, times the difference.
#pragma once

#include <cmath>

#include "numeric/residual.hpp"

namespace resfed {

__extension__ typedef __int128 int128;
__extension__ typedef unsigned __int128 uint128;

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

RESFED_HD double as_double(float value) { return value; }
RESFED_HD double as_double(double value) { return value; }
RESFED_HD double as_double(Half value) { return widen(value); }
RESFED_HD double as_double(BFloat16 value) { return widen(value); }

RESFED_HD void round_to(double value, float* out) { *out = static_cast<float>(value); }
RESFED_HD void round_to(double value, double* out) { *out = value; }
RESFED_HD void round_to(double value, Half* out) {
  *out = narrow_to_half(static_cast<float>(value));
}
RESFED_HD void round_to(double value, BFloat16* out) {
  *out = narrow_to_bfloat16(static_cast<float>(value));
}

// Magnitudes ordered as integers: no number is above infinity, and a NaN is. All NaNs are equal,
// for their bits differ between processors.
RESFED_HD uint64_t magnitude_bits(double value) {
  constexpr uint64_t kNan = 0x7ff0000000000001ull;
  return min_of<uint64_t>(double_bits(value) & 0x7fffffffffffffffull, kNan);
}

// A weight, and what it is to integers.
struct Weight {
  double value;
  int128 units;

  explicit Weight(double weight)
      : value(weight), units(static_cast<int128>(nearbyint(weight * kWeightUnits))) {}
};

// What an element's change adds.
template <class T>
RESFED_HD double float_change(const Weight& weight, T before, T after) {
  return weight.value * (as_double(after) - as_double(before));
}

// A double below 2^47 in units of 2^-80, truncated. Signs are as good as random: no branch on them.
RESFED_HD int128 to_units(double value) {
  const uint64_t bits = double_bits(value);
  const int exponent = static_cast<int>((bits >> 52) & 0x7ff);
  const int128 mantissa = (bits & 0xfffffffffffffull) | 0x10000000000000ull;
  const int shift = exponent - 1075 - kFloatUnitLog2;
  const int128 units = shift >= 0 ? mantissa << shift : mantissa >> min_of(-shift, 63);
  const int128 sign = -static_cast<int128>(bits >> 63);
  return (units ^ sign) - sign;
}

// An integer or bool element as a number, from its bits.
RESFED_HD int128 integer_value(uint64_t bits, uint32_t elem_bytes, bool is_signed) {
  if (!is_signed) return static_cast<int128>(bits);
  const unsigned unused = 64 - 8 * elem_bytes;
  return static_cast<int64_t>(bits << unused) >> unused;
}

// Changes no value, only where it is kept.
RESFED_HD void carry_over(int128* sum, int64_t* carry) {
  *carry += static_cast<int64_t>(*sum >> kCarryLog2);
  *sum &= (int128{1} << kCarryLog2) - 1;
}

// The nearest double.
RESFED_HD double nearest_double(int128 value) {
  const bool negative = value < 0;
  const uint128 magnitude =
      negative ? 0 - static_cast<uint128>(value) : static_cast<uint128>(value);
  const auto high = static_cast<uint64_t>(magnitude >> 64);
  // The highest 64 bits; that there were any below is kept in the last one.
  const unsigned dropped = high != 0 ? floor_log2(high) + 1 : 0;
  const uint128 rest = magnitude & ((uint128{1} << dropped) - 1);
  const uint64_t top = static_cast<uint64_t>(magnitude >> dropped) | (rest != 0 ? 1 : 0);
  const double scale = double_from_bits(static_cast<uint64_t>(1023 + dropped) << 52);
  const double nearest = static_cast<double>(top) * scale;
  return negative ? -nearest : nearest;
}

// What bounds an integer's weighted change.
RESFED_HD uint64_t integer_magnitude(const Weight& weight, int128 change) {
  return magnitude_bits(nearest_double(weight.units) * nearest_double(change));
}

// carry * 2^kCarryLog2 + sum, cut in one way only: `low` lies in [0, 2^kCarryLog2).
struct WideSum {
  int128 high, low;
  RESFED_HD WideSum(int64_t carry, int128 sum)
      : high(carry + (sum >> kCarryLog2)), low(sum & ((int128{1} << kCarryLog2) - 1)) {}
};

// The nearest double.
RESFED_HD double nearest_double(int64_t carry, int128 sum) {
  if (carry == 0) return nearest_double(sum);
  const WideSum wide(carry, sum);
  constexpr int kDropped = 38;  // of more than 80 bits; that there were any is kept in the last one
  const int128 dropped = wide.low & ((int128{1} << kDropped) - 1);
  const int128 top = wide.high * (int128{1} << (kCarryLog2 - kDropped)) + (wide.low >> kDropped);
  if (top < int128{1} << 80 && top > -(int128{1} << 80)) {  // fits as it is
    return nearest_double(top * (int128{1} << kDropped) + dropped);
  }
  return nearest_double(top | static_cast<int128>(dropped != 0)) * 0x1p38;
}

// carry and sum / weight to the nearest; of two as near, the one that makes `base` plus it even.
RESFED_HD int128 rounded_quotient(int64_t carry, int128 sum, int128 weight, int128 base) {
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

// An element's mean: the reference itself where nothing changed it, or changes cancelled out.
template <class T>
RESFED_HD T float_mean(T reference, int64_t carry, int128 sum, double total_weight) {
  T mean = reference;
  if (carry == 0 && sum == 0) return mean;
  const double total = nearest_double(carry, sum);
  if (total != 0) round_to(as_double(reference) + total * kFloatUnit / total_weight, &mean);
  return mean;
}
// Of an integer `base`, in its lowest bits.
RESFED_HD uint64_t integer_mean(int128 base, int64_t carry, int128 sum, int128 weight) {
  if (carry == 0 && sum == 0) return static_cast<uint64_t>(base);
  return static_cast<uint64_t>(base + rounded_quotient(carry, sum, weight, base));
}

}  // namespace resfed

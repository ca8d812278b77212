// The order in which residuals are chosen, and nothing else.
//
// The key of a residual is its float32 bit pattern without the sign: for finite numbers larger key
// means larger magnitude, and infinities and NaNs lie above all finite keys, so that one integer
// comparison finds candidates and non-finite residuals alike, whatever the machine's flush mode.
//
// Top-k: the k largest keys win; among equal keys the lower index wins; key 0 never wins.
#pragma once

#include <cmath>

#include "host_device.hpp"
#include "numeric/check.hpp"

namespace resfed {

constexpr uint32_t kFirstNonFiniteKey = 0x7f800000u;

RESFED_HD uint32_t magnitude_key(float residual) { return float_bits(residual) & 0x7fffffffu; }
RESFED_HD bool is_finite_key(uint32_t key) { return key < kFirstNonFiniteKey; }

// Radix selection reads the 31 bits of a key in three digits, the highest first.
constexpr unsigned kDigits = 3;
constexpr unsigned kDigitBits = 11;  // the highest digit; the others have one bit less
RESFED_HD unsigned digit_shift(unsigned which) { return 10 * (kDigits - 1 - which); }
RESFED_HD uint32_t digit_of(uint32_t key, unsigned which) {
  return (key >> digit_shift(which)) & (which == 0 ? 2047u : 1023u);
}

// How the threshold is estimated: from one element of each of n_samples equal intervals, as the key
// of this rank among them. No samples: every nonzero is a candidate.
struct SamplePlan {
  uint32_t n_samples = 0;
  uint32_t rank = 0;
};
inline SamplePlan sample_plan(uint64_t n_elems, uint64_t k) {
  const uint64_t n_samples = min_of<uint64_t>(max_of<uint64_t>(n_elems / 256, 2048), 16384);
  if (k == 0 || n_elems < 8 * n_samples) return {};
  const double expected =
      static_cast<double>(k) / static_cast<double>(n_elems) * static_cast<double>(n_samples);
  const double rank = expected + 2.5 * std::sqrt(expected) + 4.0;
  if (rank >= static_cast<double>(n_samples)) return {};
  return {static_cast<uint32_t>(n_samples), static_cast<uint32_t>(rank)};
}

// Which element stands for an interval, by a counter-based generator.
RESFED_HD uint64_t sampled_index(uint64_t interval_length, uint64_t which) {
  return which * interval_length + mix64(which) % interval_length;
}

}  // namespace resfed

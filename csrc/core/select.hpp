// The order in which residuals are chosen, and nothing else.
//
// The key of a residual is its float32 bit pattern without the sign: for finite numbers larger key
// means larger magnitude, and infinities and NaNs lie above all finite keys, so that one integer
// comparison finds candidates and non-finite residuals alike, whatever the machine's flush mode.
//
// Top-k: the k largest keys win; among equal keys the lower index wins; key 0 never wins.
#pragma once

#include "core/hd.hpp"

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

}  // namespace resfed

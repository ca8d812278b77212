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

// Radix selection reads a key in two digits.
constexpr unsigned kHighDigitBits = 16;
constexpr unsigned kLowDigitBits = 15;
RESFED_HD uint32_t high_digit(uint32_t key) { return key >> kLowDigitBits; }
RESFED_HD uint32_t low_digit(uint32_t key) { return key & ((1u << kLowDigitBits) - 1); }

}  // namespace resfed

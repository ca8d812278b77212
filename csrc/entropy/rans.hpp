// Binary rANS (Duda, arXiv 1311.2540) with a 32-bit state and 16-bit words.
//
// Three things that surprise:
//  1. The encoder takes the decisions last to first; only then does the decoder meet them first to
//     last. So an encoder first records (bit, probability) forwards and then runs backwards.
//  2. The encoder writes its words downwards, from the end of a buffer; the decoder reads upwards.
//  3. The decoder ends in the state the encoder started from, kRansLow: a free check.
//
// A decision owns an interval of the kProbOne slots: a 1 of probability p the slots [0, p), a 0 the
// rest; a number of n raw bits 2^-n of them, in order. With kRansLow = 2^16, 16-bit words and
// 14-bit probabilities one word at most moves per decision. docs/design.md has what it costs above
// the ideal code length.
#pragma once

#include "entropy/probability.hpp"
#include "host_device.hpp"

namespace resfed {

constexpr uint32_t kRansLow = 1u << 16;
constexpr unsigned kRansWordBits = 16;
static_assert(kRansLow >= kProbOne, "every slot must be reachable");
constexpr unsigned kMaxRawBits = kProbBits;  // of one number

struct Slots {
  uint16_t start;
  uint16_t freq;  // 1 <= freq < kProbOne
};
RESFED_HD constexpr Slots slots_of_bit(bool bit, uint32_t prob_one) {
  return bit ? Slots{0, static_cast<uint16_t>(prob_one)}
             : Slots{static_cast<uint16_t>(prob_one), static_cast<uint16_t>(kProbOne - prob_one)};
}
RESFED_HD constexpr Slots slots_of_bypass(uint32_t number, unsigned n_bits) {  // n_bits >= 1
  return {static_cast<uint16_t>(number << (kProbBits - n_bits)),
          static_cast<uint16_t>(1u << (kProbBits - n_bits))};
}

// A state below this is not full: it takes a decision with n slots without overflow.
RESFED_HD constexpr uint32_t rans_limit(uint32_t n) {
  return n << (16 + kRansWordBits - kProbBits);
}

#if defined(__CUDA_ARCH__)
RESFED_HD uint32_t rans_quotient(uint32_t state, uint32_t n) { return state / n; }
#else
// Multiplication in the place of division: ceil(2^46 / n), exact for all states below the limit,
// since the product exceeds 2^46 state / n by less than the state, and state * n < 2^46.
constexpr unsigned kReciprocalBits = 46;
struct ReciprocalTable {
  uint64_t of[kProbOne];
  constexpr ReciprocalTable() : of() {
    for (uint32_t n = 1; n < kProbOne; ++n) of[n] = ((1ull << kReciprocalBits) + n - 1) / n;
  }
};
inline constexpr ReciprocalTable kReciprocals;
RESFED_HD constexpr uint32_t rans_quotient(uint32_t state, uint32_t n) {
  return static_cast<uint32_t>((state * kReciprocals.of[n]) >> kReciprocalBits);
}
// The largest state of each n has the largest error and the largest product.
constexpr bool quotients_are_exact() {
  for (uint32_t n = 1; n < kProbOne; ++n) {
    const uint32_t state = rans_limit(n) - 1;
    if (kReciprocals.of[n] > ~0ull / state || rans_quotient(state, n) != state / n) return false;
  }
  return true;
}
static_assert(quotients_are_exact());
#endif

// Puts one decision on the state; returns true when *word must be written first.
RESFED_HD bool rans_put(uint32_t& state, Slots slots, uint16_t* word) {
  const bool full = state >= rans_limit(slots.freq);
  if (full) {
    *word = static_cast<uint16_t>(state);
    state >>= kRansWordBits;
  }
  state += rans_quotient(state, slots.freq) * (kProbOne - slots.freq) + slots.start;
  return full;
}

// Takes one bit off the state, without refilling it. With q = state >> kProbBits and slot the
// rest, a 1 leaves p q + slot; a 0 leaves (kProbOne - p) q + slot - p = state - p q - p.
RESFED_HD bool rans_take(uint32_t& state, uint32_t prob_one) {
  const uint32_t slot = state & (kProbOne - 1);
  const uint32_t ones = prob_one * (state >> kProbBits);
  const bool bit = slot < prob_one;
  state = bit ? ones + slot : state - ones - prob_one;
  return bit;
}

// The same for a number of n_bits raw bits.
RESFED_HD uint32_t rans_take_bypass(uint32_t& state, unsigned n_bits) {
  const unsigned shift = kProbBits - n_bits;
  const uint32_t slot = state & (kProbOne - 1);
  state = (state >> kProbBits << shift) | (slot & ((1u << shift) - 1));
  return slot >> shift;
}

RESFED_HD bool rans_needs_word(uint32_t state) { return state < kRansLow; }
RESFED_HD uint32_t rans_refilled(uint32_t state, uint16_t word) {
  return (state << kRansWordBits) | word;
}

}  // namespace resfed

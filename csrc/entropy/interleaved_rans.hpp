// Interleaved rANS (Giesen, arXiv 1402.3392) of the lanes of a slice: each lane has a state of 32
// bits, all of them share one stream of 16-bit words. A lane that needs a word takes the next one.
//
// The encoder runs backwards, from the last nonzero of the last lane, and writes its words
// downwards. The decoder ends in the states that the encoder started from, kLaneStart: a free
// check.
#pragma once

#include "entropy/frequencies.hpp"
#include "entropy/slots.hpp"

namespace resfed {

constexpr uint32_t kLaneStart = 1u << 16;  // also the least state between symbols
// Two symbols, a class's raw bits or an exponent for each, and mantissas of 62 and 63 bits.
constexpr size_t kMostWordsOfNonzero = 4 + 4 + 4;

// A state below this takes a symbol of this frequency without overflow.
RESFED_HD constexpr uint32_t lane_limit(uint32_t freq) { return freq << (32 - kFrequencyBits); }

#if defined(__CUDA_ARCH__)
RESFED_HD uint32_t lane_quotient(uint32_t state, uint32_t freq) { return state / freq; }
#else
// Multiplication in the place of division: ceil(2^44 / freq), exact for all states below the limit.
struct LaneReciprocals {
  uint64_t of[kFrequencyOne];
  constexpr LaneReciprocals() : of() {
    for (uint32_t f = 1; f < kFrequencyOne; ++f) of[f] = ((1ull << 44) + f - 1) / f;
  }
};
inline constexpr LaneReciprocals kLaneReciprocals;
RESFED_HD constexpr uint32_t lane_quotient(uint32_t state, uint32_t freq) {
  return static_cast<uint32_t>(state * kLaneReciprocals.of[freq] >> 44);
}
// The largest state of each frequency has the largest error and the largest product.
constexpr bool lane_quotients_are_exact() {
  for (uint32_t f = 1; f < kFrequencyOne; ++f) {
    const uint32_t state = lane_limit(f) - 1;
    if (kLaneReciprocals.of[f] > ~0ull / state || lane_quotient(state, f) != state / f)
      return false;
  }
  return true;
}
static_assert(lane_quotients_are_exact());
#endif

// Puts a symbol on the state, which must be below its limit.
RESFED_HD uint32_t with_symbol(uint32_t state, Slots slots) {
  return state + lane_quotient(state, slots.freq) * (kFrequencyOne - slots.freq) + slots.start;
}
// Takes the symbol that owns the state's slot off it; the state is not refilled.
RESFED_HD uint32_t without_symbol(uint32_t state, Slots slots) {
  const uint32_t slot = state & (kFrequencyOne - 1);
  return slots.freq * (state >> kFrequencyBits) + slot - slots.start;
}

}  // namespace resfed

// Binary rANS (Duda, arXiv 1311.2540) with a 32-bit state and 16-bit words.
//
// Three things that surprise:
//  1. The encoder takes the decisions last to first; only then does the decoder meet them first to
//     last. So an encoder first records (bit, probability) forwards and then runs backwards.
//  2. The encoder writes its words downwards, from the end of a buffer; the decoder reads upwards.
//  3. The decoder ends in the state the encoder started from, kRansLow: a free check.
//
// A 1 owns the slots [0, p), a 0 the slots [p, kProbOne). With kRansLow = 2^16, 16-bit words and
// 14-bit probabilities one word at most moves per decision. docs/design.md has what it costs above
// the ideal code length.
#pragma once

#include "core/hd.hpp"
#include "core/probability.hpp"

namespace resfed {

constexpr uint32_t kRansLow = 1u << 16;
constexpr unsigned kRansWordBits = 16;
static_assert(kRansLow >= kProbOne, "every slot must be reachable");

// Puts one decision on the state; returns true when *word must be written first.
RESFED_HD bool rans_put(uint32_t& state, bool bit, uint32_t prob_one, uint16_t* word) {
  const uint32_t freq = bit ? prob_one : kProbOne - prob_one;
  const uint32_t start = bit ? 0 : prob_one;
  const uint64_t limit = static_cast<uint64_t>(freq) << (16 + kRansWordBits - kProbBits);
  const bool full = state >= limit;
  if (full) {
    *word = static_cast<uint16_t>(state);
    state >>= kRansWordBits;
  }
  state = ((state / freq) << kProbBits) + state % freq + start;
  return full;
}

// Takes one decision off the state, without refilling it. With q = state >> kProbBits and slot the
// rest, a 1 leaves p q + slot; a 0 leaves (kProbOne - p) q + slot - p = state - p q - p.
RESFED_HD bool rans_take(uint32_t& state, uint32_t prob_one) {
  const uint32_t slot = state & (kProbOne - 1);
  const uint32_t ones = prob_one * (state >> kProbBits);
  const bool bit = slot < prob_one;
  state = bit ? ones + slot : state - ones - prob_one;
  return bit;
}

RESFED_HD bool rans_needs_word(uint32_t state) { return state < kRansLow; }
RESFED_HD uint32_t rans_refilled(uint32_t state, uint16_t word) {
  return (state << kRansWordBits) | word;
}

}  // namespace resfed

// Adaptive probability of one binary decision: the mean of a fast and a slow estimate.
//
// Each estimate moves towards the bit seen by a fraction of the distance: 1/16 (fast) and 1/128
// (slow), or 1/(count + 1.5) while that is larger, so a fresh context learns quickly. The count
// starts at a trained confidence, the estimates at a trained probability (initial_states.hpp).
// Integers only: 16-bit probabilities of a 1, products of 16-bit numbers shifted right.
#pragma once

#include "core/hd.hpp"

namespace resfed {

constexpr unsigned kProbBits = 14;  // precision the coder works with
constexpr uint32_t kProbOne = 1u << kProbBits;
constexpr uint32_t kFastRate = 65536 / 16;
constexpr uint32_t kSlowRate = 65536 / 128;
constexpr uint32_t kMaxCount = 127;

struct InitialState {
  uint8_t probability;  // of a 1, in 1/256, 1..255
  uint8_t count;
};

struct Probability {
  uint16_t fast;
  uint16_t slow;
  uint16_t count;
};

RESFED_HD Probability initial_probability(InitialState s) {
  const uint16_t p = static_cast<uint16_t>(s.probability * 256u);
  return {p, p, s.count};
}

// Probability of a 1 in 1/kProbOne, never 0 and never certain.
RESFED_HD uint32_t prob_of_one(const Probability& p) {
  const uint32_t prob = (static_cast<uint32_t>(p.fast) + p.slow) >> (17 - kProbBits);
  return min_of(max_of(prob, 1u), kProbOne - 1);
}

RESFED_HD uint16_t move_towards(uint16_t estimate, bool bit, uint32_t rate) {
  return bit ? static_cast<uint16_t>(estimate + (((65535u - estimate) * rate) >> 16))
             : static_cast<uint16_t>(estimate - ((estimate * rate) >> 16));
}

RESFED_HD void update(Probability& p, bool bit) {
  // 65536 / (count + 1.5). At the last count that is below both rates, and most updates are there:
  // they need no division.
  static_assert(131072u / (2u * kMaxCount + 3u) < kSlowRate);
  uint32_t young = 0;
  if (p.count < kMaxCount) young = 131072u / (2u * p.count++ + 3u);
  p.fast = move_towards(p.fast, bit, max_of(young, kFastRate));
  p.slow = move_towards(p.slow, bit, max_of(young, kSlowRate));
}

}  // namespace resfed

// Adaptive probability of one binary decision: the mean of a fast and a slow estimate.
//
// Each estimate moves towards the bit seen by a fraction of the distance: 1/16 (fast) and 1/128
// (slow), or 1/(count + 1.5) while that is larger, so a fresh context learns quickly. The count
// starts at a trained confidence, the estimates at a trained probability (contexts_v1.hpp).
// Integers only: 16-bit probabilities of a 1, products of 16-bit numbers shifted right.
#pragma once

#include <initializer_list>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "host_device.hpp"

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

// `warmup` falls by one with each decision until it is kWarmedUp: kWarmedUp + kMaxCount - count.
struct alignas(8) Probability {
  uint16_t fast;
  uint16_t slow;
  uint16_t warmup;
  uint16_t unused;
};
static_assert(sizeof(Probability) == 8);  // one shift to address

constexpr size_t kWarmedUp = 32767;

RESFED_HD constexpr Probability initial_probability(InitialState s) {
  const uint16_t p = static_cast<uint16_t>(s.probability * 256u);
  return {p, p, static_cast<uint16_t>(kWarmedUp + kMaxCount - s.count), 0};
}

// Probability of a 1 in 1/kProbOne. Never 0 and never certain: see stays_uncertain() below.
RESFED_HD constexpr uint32_t prob_of_one(const Probability& p) {
  return (static_cast<uint32_t>(p.fast) + p.slow) >> (17 - kProbBits);
}

// How far an estimate moves, in 1/65536 of the distance: 1/(count + 1.5), or the rate if that is
// more. `warmup` falls by the same arithmetic: 2/65536 of anything above kWarmedUp is 1, of
// kWarmedUp 0.
struct alignas(8) Rates {
  uint16_t fast;
  uint16_t slow;
  uint16_t warmup;
  uint16_t unused;
};
RESFED_HD constexpr Rates rates_at(size_t warmup) {
  const auto count = static_cast<uint32_t>(kWarmedUp + kMaxCount - warmup);
  const uint32_t early = 131072u / (2u * count + 3u);
  return {static_cast<uint16_t>(early > kFastRate ? early : kFastRate),
          static_cast<uint16_t>(early > kSlowRate ? early : kSlowRate), 2, 0};
}
#if !defined(__CUDA_ARCH__)
// The same as a table: a load instead of a division.
struct RateTable {
  Rates of[kMaxCount + 1];
  constexpr RateTable() : of() {
    for (uint32_t i = 0; i <= kMaxCount; ++i) of[i] = rates_at(kWarmedUp + i);
  }
};
inline constexpr RateTable kRateTable;
#endif

// A fraction of the way towards 65535 or 0, as `target` has all bits set or none: towards 65535 the
// complement moves to 0.
RESFED_HD constexpr uint16_t move_towards(uint32_t target, uint16_t estimate, uint32_t rate) {
  const uint32_t distance = (estimate ^ target) & 0xffffu;
  return static_cast<uint16_t>((distance - ((distance * rate) >> 16)) ^ target);
}
RESFED_HD constexpr Probability moved_towards(uint32_t target, const Probability& p,
                                              const Rates& rates) {
  return {move_towards(target, p.fast, rates.fast), move_towards(target, p.slow, rates.slow),
          move_towards(0, p.warmup, rates.warmup), 0};
}
RESFED_HD constexpr uint32_t target_of(bool bit) { return bit ? ~0u : 0u; }

RESFED_HD void update(Probability& p, bool bit) {
  const uint32_t target = target_of(bit);
#if defined(__CUDA_ARCH__)
  p = moved_towards(target, p, rates_at(p.warmup));
#elif defined(__SSE2__)
  // moved_towards(), all of it at once.
  const auto load = [](const auto& four) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&four));
  };
  const __m128i targets = _mm_cvtsi32_si128(static_cast<int>(target));  // of fast and slow
  const __m128i rates = load(kRateTable.of[p.warmup - kWarmedUp]);
  const __m128i distance = _mm_xor_si128(load(p), targets);
  const __m128i left = _mm_sub_epi16(distance, _mm_mulhi_epu16(distance, rates));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(&p), _mm_xor_si128(left, targets));
#else
  p = moved_towards(target, p, kRateTable.of[p.warmup - kWarmedUp]);
#endif
}

// Whether a context that starts like this has a probability of at least 1 and at most kProbOne - 1
// for ever. Estimates move monotonically, so the worst are equal bits for ever; a warmed-up
// estimate stops moving short of either end, where its product with the rate is below 1.
constexpr bool stays_uncertain(InitialState state) {
  for (const bool bit : {false, true}) {
    Probability p = initial_probability(state);
    for (bool moves = true; moves;) {
      const Probability next = moved_towards(target_of(bit), p, rates_at(p.warmup));
      moves = next.fast != p.fast || next.slow != p.slow || next.warmup != p.warmup;
      p = next;
      if (prob_of_one(p) < 1 || prob_of_one(p) > kProbOne - 1) return false;
    }
  }
  return true;
}

}  // namespace resfed

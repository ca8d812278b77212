// Frequencies of the symbols of a row, and code lengths, in integers only, so that they are the
// same everywhere.
#pragma once

#include "entropy/alphabet.hpp"
#include "host_device.hpp"

namespace resfed {

constexpr unsigned kFrequencyBits = 12;
constexpr uint32_t kFrequencyOne = 1u << kFrequencyBits;  // of all symbols of a row

// Of one row. Each symbol has a frequency of at least 1.
struct Frequencies {
  uint16_t of[kSymbols];
};

// 32 log2(value), rounded; value >= 1.
constexpr uint32_t log2_in_32nds(uint64_t value) {
  unsigned log2 = 0;
  while (value >> log2 > 1) ++log2;
  uint64_t x = log2 <= 31 ? value << (31 - log2) : value >> (log2 - 31);  // [2^31, 2^32)
  uint32_t bits = log2;
  for (int i = 0; i < 6; ++i) {  // squaring doubles the logarithm
    x = x * x >> 31;
    bits = bits << 1 | static_cast<uint32_t>(x >> 32);
    x >>= x >> 32;
  }
  return (bits + 1) >> 1;
}

// Code length of a symbol of this frequency, in 1/32 bit.
struct CodeLengths {
  uint16_t of[kFrequencyOne + 1];
  constexpr CodeLengths() : of() {
    for (uint32_t f = 1; f <= kFrequencyOne; ++f) {
      of[f] = static_cast<uint16_t>(32 * kFrequencyBits - log2_in_32nds(f));
    }
  }
};
inline constexpr CodeLengths kCodeLengths;

// Frequencies in proportion to weights below 2^46, whose sum is positive.
constexpr Frequencies normalized(const uint64_t (&weights)[kSymbols]) {
  uint64_t sum = 0;
  for (uint64_t weight : weights) sum += weight;
  Frequencies frequencies{};
  uint32_t total = 0, most = 0;
  for (uint32_t s = 0; s < kSymbols; ++s) {
    const auto share = static_cast<uint32_t>((weights[s] << kFrequencyBits) / sum);
    frequencies.of[s] = static_cast<uint16_t>(share == 0 ? 1 : share);
    total += frequencies.of[s];
    if (frequencies.of[s] > frequencies.of[most]) most = s;
  }
  frequencies.of[most] = static_cast<uint16_t>(frequencies.of[most] + kFrequencyOne - total);
  return frequencies;
}

// weight * 2^(ratio / 2), times 2^23; weight at most kFrequencyOne, |ratio| <= kMostHalfOctaves.
constexpr int kMostHalfOctaves = 14;
constexpr uint64_t scaled_weight(uint32_t weight, int half_octaves) {
  const unsigned steps = static_cast<unsigned>(half_octaves + kMostHalfOctaves);  // 0 to 28
  return static_cast<uint64_t>(weight) * (steps % 2 == 0 ? 65536 : 92682) << (steps / 2);
}

// A row of a trained set: quarter octaves from 0 to 47, written as 0 to 9, A to Z, a to l.
constexpr unsigned digit(char c) {
  return static_cast<unsigned>(c <= '9' ? c - '0' : c <= 'Z' ? c - 'A' + 10 : c - 'a' + 36);
}
constexpr Frequencies trained_row(const char* quarter_octaves) {
  constexpr uint64_t kSteps[4] = {65536, 77936, 92682, 110218};
  uint64_t weights[kSymbols] = {};
  for (uint32_t s = 0; s < kSymbols; ++s) {
    const unsigned q = digit(quarter_octaves[s]);
    weights[s] = kSteps[q % 4] << (q / 4);
  }
  return normalized(weights);
}

}  // namespace resfed

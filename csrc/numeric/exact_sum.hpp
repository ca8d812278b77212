// Sums of squares without rounding, so that no order of summation changes them.
//
// A finite float32 is m * 2^e with a 24-bit m; its square adds m^2 (48 bits) to the bin of e. Each
// bin keeps the low and the high 24 bits of the m^2 apart, in 64 bits: room for 2^40 terms.
#pragma once

#include "host_device.hpp"

namespace resfed {

struct ExactSquare {
  uint32_t bin;
  uint64_t low, high;
};
RESFED_HD ExactSquare exact_square(float value) {
  const uint32_t bits = float_bits(value) & 0x7fffffffu;
  const uint32_t exponent = bits >> 23;
  const uint64_t m = (bits & 0x7fffffu) | (exponent != 0 ? 0x800000u : 0u);
  const uint64_t square = m * m;
  return {max_of(exponent, 1u), square & 0xffffffu, square >> 24};
}

struct ExactSquares {
  static constexpr unsigned kBins = 256;
  uint64_t low[kBins] = {};
  uint64_t high[kBins] = {};

  RESFED_HD void add(float value) {
    const ExactSquare square = exact_square(value);
    low[square.bin] += square.low;
    high[square.bin] += square.high;
  }
  RESFED_HD void add(const ExactSquares& other) {
    for (unsigned i = 0; i < kBins; ++i) low[i] += other.low[i], high[i] += other.high[i];
  }
  RESFED_HD void subtract(const ExactSquares& other) {  // values that were added
    for (unsigned i = 0; i < kBins; ++i) low[i] -= other.low[i], high[i] -= other.high[i];
  }
  // One fixed sequence of double operations, smallest bin first.
  RESFED_HD double value() const {
    double sum = 0.0;
    for (unsigned i = 1; i < kBins; ++i) {
      if ((low[i] | high[i]) == 0) continue;
      const double bin = static_cast<double>(high[i]) * 16777216.0 + static_cast<double>(low[i]);
      const double scale = double_from_bits(static_cast<uint64_t>(1023 + 2 * (int(i) - 150)) << 52);
      const double scaled = bin * scale;
      sum = sum + scaled;
    }
    return sum;
  }
};

}  // namespace resfed

// Uniform quantizer with a dead zone, on magnitudes.
//
//   level(m)  = 0                              if the element was not selected
//             = 1 + floor((m - threshold) / step), at most max_level
//   value(l)  = threshold + (l - 1 + offset(l) / 256) * step
//
// offset(l) is the mean position inside level l in 1/256 of a step, sent for the first
// n_offsets levels and 128 (the middle) above. Every operation is one IEEE float32 operation.
#pragma once

#include "core/hd.hpp"
#include "core/select.hpp"

namespace resfed {

constexpr unsigned kMaxOffsets = 4;
constexpr uint32_t kMaxLevel = 1u << 23;
constexpr uint8_t kMiddleOffset = 128;

struct Quantizer {
  float threshold = 0.0f;
  float step = 0.0f;
  uint32_t max_level = kMaxLevel;  // encoder only
  uint32_t n_offsets = 0;
  uint8_t offsets[kMaxOffsets] = {};
};

struct Quantized {
  uint32_t level;     // >= 1
  uint32_t position;  // inside the level, in 1/65536 of a step, 0..65535
};

RESFED_HD Quantized quantize(const Quantizer& q, float magnitude) {
  const float steps = (magnitude - q.threshold) / q.step;
  const uint32_t whole =
      steps < static_cast<float>(q.max_level) ? static_cast<uint32_t>(steps) : q.max_level;
  const uint32_t level = min_of(whole + 1, q.max_level);
  const float inside = (steps - static_cast<float>(level - 1)) * 65536.0f;
  const uint32_t position = inside < 65535.0f ? static_cast<uint32_t>(inside) : 65535u;
  return {level, position};
}

RESFED_HD float dequantize_magnitude(const Quantizer& q, uint32_t level) {
  const uint8_t offset = level <= q.n_offsets ? q.offsets[level - 1] : kMiddleOffset;
  const float steps = static_cast<float>(level - 1) + static_cast<float>(offset) / 256.0f;
  const float scaled = steps * q.step;
  const float value = q.threshold + scaled;
  return is_finite_key(magnitude_key(value)) ? value : float_from_bits(0x7f7fffffu);
}

// The sent offset of a level from the sum of positions of its members; rounds half up.
RESFED_HD uint8_t mean_offset(uint64_t position_sum, uint64_t count) {
  if (count == 0) return kMiddleOffset;
  const uint64_t mean = (position_sum + 128 * count) / (256 * count);
  return static_cast<uint8_t>(min_of<uint64_t>(mean, 255));
}

// Scale of a vector tensor: residuals are divided by 2^exponent before selection. Both factors are
// normal float32 numbers for every exponent the format allows, so the products round once.
constexpr int kMinExponent = -120;
constexpr int kMaxExponent = 120;
RESFED_HD float power_of_two(int exponent) {
  return float_from_bits(static_cast<uint32_t>(exponent + 127) << 23);
}

}  // namespace resfed

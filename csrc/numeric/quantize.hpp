// Uniform quantizer with a dead zone, on magnitudes.
//
//   level(m)  = 0                              if the element was not selected
//             = 1 + floor((m - threshold) / step), at most max_level
//   value(l)  = threshold + (l - 1 + offset(l) / 256) * step
//
// offset(l) is the mean position inside level l in 1/256 of a step, sent for the first
// n_offsets levels and 128 (the middle) above. Every operation is one IEEE float32 operation.
#pragma once

#include <cmath>

#include "format/version.hpp"
#include "host_device.hpp"
#include "numeric/select.hpp"

namespace resfed {

constexpr unsigned kMaxOffsets = CurrentFormat::kMaxOffsets;
constexpr uint32_t kMaxLevel = CurrentFormat::kMaxLevel;
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

// How threshold and step follow from a selection.
struct StepRule {
  double ratio = 0.55;    // threshold / step
  unsigned bits = 0;      // if not 0: 2^(bits - 1) levels between threshold and maximum
  bool automatic = true;  // ratio is a default: keep the step from falling far below the data
};

// "auto" never steps finer than this fraction of the selection's root mean square: with a sparsity
// near 0 the threshold does not determine a good step.
RESFED_HD double finest_automatic_step(double squares, uint64_t count) {
  return sqrt(squares / static_cast<double>(count)) * (1.0 / 16);
}

// Whether that may matter, so that the exact sum of squares must be known; `squares` may be rounded
// in any order.
RESFED_HD bool may_be_too_fine(const StepRule& rule, float threshold, double squares,
                               uint64_t count) {
  return rule.automatic && rule.bits == 0 &&
         threshold / rule.ratio <= 1.001 * finest_automatic_step(squares, count);
}

// For a selection with these magnitudes. `finest`: 0 unless the step may be too fine.
RESFED_HD Quantizer fit_quantizer(const StepRule& rule, float least, float most, double finest) {
  Quantizer q;
  q.threshold = least;
  const double span = static_cast<double>(most) - static_cast<double>(least);
  double step = static_cast<double>(least) / rule.ratio;
  if (rule.bits > 0) {
    q.max_level = 1u << (rule.bits - 1);
    if (span > 0) step = span / q.max_level;
  } else {
    step = max_of(max_of(step, finest), span / (kMaxLevel / 2));
  }
  constexpr double kSmallest = 0x1p-149;
  constexpr double kLargest = 0x1.fffffep127;
  q.step = static_cast<float>(min_of(max_of(step, kSmallest), kLargest));
  return q;
}

// The offsets sent with a quantizer are the mean positions inside the levels, rounded half up.
// To begin with all is 0.
struct LevelMeans {
  uint64_t position_sum[kMaxOffsets];
  uint64_t count[kMaxOffsets];
  uint32_t highest;

  RESFED_HD void add(Quantized quantized) {
    if (quantized.level <= kMaxOffsets) {
      position_sum[quantized.level - 1] += quantized.position;
      count[quantized.level - 1] += 1;
    }
    highest = max_of(highest, quantized.level);
  }
  RESFED_HD void add(const LevelMeans& other) {
    for (unsigned i = 0; i < kMaxOffsets; ++i) {
      position_sum[i] += other.position_sum[i];
      count[i] += other.count[i];
    }
    highest = max_of(highest, other.highest);
  }
  RESFED_HD void complete(Quantizer* q) const {
    q->n_offsets = min_of<uint32_t>(highest, kMaxOffsets);
    for (uint32_t i = 0; i < q->n_offsets; ++i) {
      const uint64_t mean =
          count[i] == 0 ? 0 : (position_sum[i] + 128 * count[i]) / (256 * count[i]);
      q->offsets[i] =
          count[i] == 0 ? kMiddleOffset : static_cast<uint8_t>(min_of<uint64_t>(mean, 255));
    }
  }
};

// Scale of a vector tensor: residuals are divided by 2^exponent before selection. Both factors are
// normal float32 numbers for every exponent that the format allows, so the products round once.
RESFED_HD float power_of_two(int exponent) {
  return float_from_bits(static_cast<uint32_t>(exponent + 127) << 23);
}

}  // namespace resfed

// Residual and recovery: conversions between a model's numbers and the codec's.
//
//   residual(current, reference)   what is to be sent, as float32
//   recover(reference, value)      what both ends hold afterwards, in the tensor's dtype
//
// float16 and bfloat16 are widened to float32 first; float64 subtracts in float64 and rounds once.
// recover() saturates: a finite reference never becomes infinite by a rounded-up residual.
#pragma once

#include "host_device.hpp"

namespace resfed {

enum class DType : uint8_t {
  kFloat32 = 0,
  kFloat16 = 1,
  kBFloat16 = 2,
  kFloat64 = 3,
  kOther = 4,  // no float: of lossless tensors alone
};

RESFED_HD size_t dtype_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// Storage types: distinct so that overloads choose the conversion.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

constexpr uint32_t kFloatInfinityBits = 0x7f800000u;
constexpr uint32_t kFloatMaxBits = 0x7f7fffffu;
constexpr uint16_t kHalfMaxBits = 0x7bffu;
constexpr uint16_t kBFloat16MaxBits = 0x7f7fu;
constexpr uint64_t kDoubleMaxBits = 0x7fefffffffffffffull;

// Exact: every float16 is a float32. Integer arithmetic only, so no rounding or flush mode matters.
RESFED_HD float widen(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t exponent = (h.bits >> 10) & 0x1fu;
  uint32_t mantissa = h.bits & 0x3ffu;
  if (exponent == 0x1f) return float_from_bits(sign | kFloatInfinityBits | (mantissa << 13));
  if (exponent != 0) return float_from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
  if (mantissa == 0) return float_from_bits(sign);
  const unsigned top = floor_log2(mantissa);  // subnormal: value = mantissa * 2^-24
  mantissa = (mantissa << (23 - top)) & 0x7fffffu;
  return float_from_bits(sign | ((top + 103) << 23) | mantissa);
}

RESFED_HD float widen(BFloat16 b) { return float_from_bits(static_cast<uint32_t>(b.bits) << 16); }

// Round to nearest even, saturating at the largest finite value. The input is finite.
RESFED_HD Half narrow_to_half(float value) {
  const uint32_t bits = float_bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | kHalfMaxBits)};  // >= 65520
  const uint32_t exponent = magnitude >> 23;
  if (exponent < 102) return {sign};  // below half of the smallest subnormal
  const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  // Below 2^-14 the result is subnormal: more bits are shifted out and no exponent is added.
  const unsigned shift = exponent < 113 ? 126 - exponent : 13;
  const uint32_t kept = mantissa >> shift;
  const uint32_t rest = mantissa & ((1u << shift) - 1);
  const uint32_t half = 1u << (shift - 1);
  const uint32_t rounded = kept + ((rest > half || (rest == half && (kept & 1u))) ? 1u : 0u);
  const uint32_t base = exponent < 113 ? 0 : (exponent - 113) << 10;  // kept carries the hidden bit
  return {static_cast<uint16_t>(sign | (base + rounded))};
}

RESFED_HD BFloat16 narrow_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  if ((rounded & 0x7fffffffu) >= kFloatInfinityBits) {
    return {static_cast<uint16_t>(((bits >> 16) & 0x8000u) | kBFloat16MaxBits)};
  }
  return {static_cast<uint16_t>(rounded >> 16)};
}

// The element as it lies in memory, zero-extended.
RESFED_HD uint64_t element_bits(float value) { return float_bits(value); }
RESFED_HD uint64_t element_bits(Half value) { return value.bits; }
RESFED_HD uint64_t element_bits(BFloat16 value) { return value.bits; }
RESFED_HD uint64_t element_bits(double value) { return double_bits(value); }

RESFED_HD float difference(float current, float reference) { return current - reference; }
RESFED_HD float difference(Half current, Half reference) {
  return widen(current) - widen(reference);
}
RESFED_HD float difference(BFloat16 current, BFloat16 reference) {
  return widen(current) - widen(reference);
}
RESFED_HD float difference(double current, double reference) {
  return static_cast<float>(current - reference);
}

// Equal bits are no change, also where they stand for an infinity or a NaN.
template <class T>
RESFED_HD float residual(T current, T reference) {
  return element_bits(current) == element_bits(reference) ? 0.0f : difference(current, reference);
}

// Whether a float64 element changed, before the change is rounded to float32.
RESFED_HD bool has_changed(double current, double reference) {
  return current != reference && element_bits(current) != element_bits(reference);
}

RESFED_HD float saturating_sum(float a, float b) {
  const uint32_t bits = float_bits(a + b);
  if ((bits & 0x7fffffffu) != kFloatInfinityBits) return float_from_bits(bits);
  return float_from_bits((bits & 0x80000000u) | kFloatMaxBits);
}

RESFED_HD float recover(float reference, float value) { return saturating_sum(reference, value); }
RESFED_HD Half recover(Half reference, float value) {
  return narrow_to_half(saturating_sum(widen(reference), value));
}
RESFED_HD BFloat16 recover(BFloat16 reference, float value) {
  return narrow_to_bfloat16(saturating_sum(widen(reference), value));
}
RESFED_HD double recover(double reference, float value) {
  const uint64_t bits = double_bits(reference + static_cast<double>(value));
  if ((bits & 0x7fffffffffffffffull) != 0x7ff0000000000000ull) return double_from_bits(bits);
  return double_from_bits((bits & 0x8000000000000000ull) | kDoubleMaxBits);
}

RESFED_HD void from_bits(uint64_t bits, float* value) {
  *value = float_from_bits(static_cast<uint32_t>(bits));
}
RESFED_HD void from_bits(uint64_t bits, Half* value) { value->bits = static_cast<uint16_t>(bits); }
RESFED_HD void from_bits(uint64_t bits, BFloat16* value) {
  value->bits = static_cast<uint16_t>(bits);
}
RESFED_HD void from_bits(uint64_t bits, double* value) { *value = double_from_bits(bits); }

}  // namespace resfed

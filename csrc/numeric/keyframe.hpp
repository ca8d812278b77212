// Keyframes: a whole model without a reference, losslessly or with fewer mantissa bits. Here is the
// arithmetic of one element; docs/format.md, section 10, has the format.
//
// The exponents of a model's weights cluster, their mantissas do not. So the bits of a float are
// put in the order exponent, sign, mantissa, and the bytes of equal significance are coded
// together, as *byte planes*: the one with the exponents shrinks, those with nothing but mantissa
// are kept raw.
#pragma once

#include "host_device.hpp"
#include "numeric/lossless.hpp"

namespace resfed {

constexpr uint64_t kKeyframeChunkElems = 65536;  // elements of one tensor that are coded together
constexpr unsigned kMaxMantissaBits = 52;

template <class UInt>
constexpr unsigned kWidth = 8 * sizeof(UInt);

template <class UInt>
RESFED_HD UInt low_mask(unsigned n_bits) {
  return static_cast<UInt>((static_cast<UInt>(1) << n_bits) - 1u);
}

// The float with these bits, rounded to `keep` explicit mantissa bits: nearest, ties to even, both
// on the bit pattern, so that a carry moves on into the exponent. What would become infinite
// saturates; infinities and NaN stay as they are.
template <class UInt>
RESFED_HD UInt round_mantissa(UInt bits, unsigned mantissa_bits, unsigned keep) {
  if (keep >= mantissa_bits) return bits;
  const UInt magnitude = bits & low_mask<UInt>(kWidth<UInt> - 1);
  const UInt infinity =
      static_cast<UInt>(low_mask<UInt>(kWidth<UInt> - 1) >> mantissa_bits << mantissa_bits);
  const unsigned dropped = mantissa_bits - keep;
  const UInt half_down = low_mask<UInt>(dropped - 1);  // just below one half
  const UInt odd = (magnitude >> dropped) & 1u;
  const UInt rounded =
      static_cast<UInt>(magnitude + half_down + odd) & static_cast<UInt>(~low_mask<UInt>(dropped));
  const UInt largest = static_cast<UInt>(infinity - (static_cast<UInt>(1) << dropped));
  return magnitude >= infinity ? bits
                               : static_cast<UInt>((bits ^ magnitude) | min_of(rounded, largest));
}

// [sign][exponent][mantissa] to [exponent][sign][mantissa], and back.
template <class UInt>
RESFED_HD UInt exponent_first(UInt bits, unsigned mantissa_bits) {
  const UInt sign = static_cast<UInt>(bits >> (kWidth<UInt> - 1));
  const UInt mantissa = bits & low_mask<UInt>(mantissa_bits);
  const UInt exponent = static_cast<UInt>(static_cast<UInt>(bits << 1) >> (mantissa_bits + 1));
  return static_cast<UInt>(static_cast<UInt>(exponent << (mantissa_bits + 1)) |
                           static_cast<UInt>(sign << mantissa_bits) | mantissa);
}

template <class UInt>
RESFED_HD UInt sign_first(UInt bits, unsigned mantissa_bits) {
  const UInt exponent = static_cast<UInt>(bits >> (mantissa_bits + 1));
  const UInt sign = static_cast<UInt>(bits >> mantissa_bits) & 1u;
  const UInt mantissa = bits & low_mask<UInt>(mantissa_bits);
  return static_cast<UInt>(static_cast<UInt>(sign << (kWidth<UInt> - 1)) |
                           static_cast<UInt>(exponent << mantissa_bits) | mantissa);
}

}  // namespace resfed

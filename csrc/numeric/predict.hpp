// Prediction: a linear combination of history terms, element by element.
//
//   predict(terms, i) = c[0] t[0][i] + c[1] t[1][i] + ...
//
// summed from left to right in the type that residuals are subtracted in (float32, or float64 for
// float64 tensors), each product and each sum rounded, then rounded to the tensor's dtype. Where
// the sum is not finite the prediction is the first term: infinities and NaNs that stay as they are
// predict themselves, and the bits of a computed NaN, which differ between processors, are never
// seen. A single term of coefficient 1 is the term itself, bit for bit.
#pragma once

#include "numeric/residual.hpp"

namespace resfed {

constexpr unsigned kMaxTerms = 6;

struct Prediction {
  const void* terms[kMaxTerms] = {};
  float coefficients[kMaxTerms] = {};
  unsigned n_terms = 0;  // 0: the prediction is the tensor's reference
};

RESFED_HD float wide(float value) { return value; }
RESFED_HD float wide(Half value) { return widen(value); }
RESFED_HD float wide(BFloat16 value) { return widen(value); }
RESFED_HD double wide(double value) { return value; }

RESFED_HD void narrow(float value, float* out) { *out = value; }
RESFED_HD void narrow(float value, Half* out) { *out = narrow_to_half(value); }
RESFED_HD void narrow(float value, BFloat16* out) { *out = narrow_to_bfloat16(value); }
RESFED_HD void narrow(double value, double* out) { *out = value; }

// The magnitude of an element's change, rounded up to the next float32; 0: no change.
template <class T>
RESFED_HD float change_rounded_up(T before, T after) {
  const double change = static_cast<double>(wide(after)) - static_cast<double>(wide(before));
  const uint32_t bits = float_bits(static_cast<float>(change)) & 0x7fffffffu;
  return change == 0 ? 0.0f : float_from_bits(bits + 1);
}

RESFED_HD bool is_finite(float value) { return (float_bits(value) << 1) < (0xffu << 24); }
RESFED_HD bool is_finite(double value) { return (double_bits(value) << 1) < (0x7ffull << 53); }

// The prediction whose terms add up to this sum and begin with `first`.
template <class Wide, class T>
RESFED_HD T prediction_of(Wide sum, T first) {
  T out;
  narrow(sum, &out);
  return is_finite(sum) ? out : first;
}

template <class T>
RESFED_HD T predict(const Prediction& prediction, uint64_t i) {
  using Wide = decltype(wide(T{}));
  Wide sum = wide(static_cast<const T*>(prediction.terms[0])[i]) *
             static_cast<Wide>(prediction.coefficients[0]);
  for (unsigned j = 1; j < prediction.n_terms; ++j) {
    sum = sum + wide(static_cast<const T*>(prediction.terms[j])[i]) *
                    static_cast<Wide>(prediction.coefficients[j]);
  }
  return prediction_of(sum, static_cast<const T*>(prediction.terms[0])[i]);
}

// What error feedback adds to a residual, in float32.
RESFED_HD float with_feedback(float residual, float feedback) { return residual + feedback; }

// A Tensor has current, reference, prediction and feedback, as in api.hpp: element i of what it is
// predicted to be, and what is left to send when the receiver holds `held`.
template <class T, class Tensor>
RESFED_HD T predicted_at(const Tensor& tensor, uint64_t i) {
  return tensor.prediction.n_terms == 0 ? static_cast<const T*>(tensor.reference)[i]
                                        : predict<T>(tensor.prediction, i);
}
template <class T, class Tensor>
RESFED_HD float residual_to(const Tensor& tensor, uint64_t i, T held) {
  const float r = residual(static_cast<const T*>(tensor.current)[i], held);
  return tensor.feedback == nullptr ? r : with_feedback(r, tensor.feedback[i]);
}

}  // namespace resfed

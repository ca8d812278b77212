// The fused pass, sixteen elements at a time. Compiled with -mavx2 -mf16c and without FMA; reached
// only after the processor was asked. Same operations as the scalar kernel, hence the same bits.
#include <immintrin.h>

#include "cpu/collect.hpp"

namespace resfed {
namespace {

__m256 load8(const float* p) { return _mm256_loadu_ps(p); }
__m256 load8(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
__m256 load8(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

template <class T>
__m256 residual8(const T* x, const T* p) {
  return _mm256_sub_ps(load8(x), load8(p));
}
__m256 residual8(const double* x, const double* p) {
  const __m128 low = _mm256_cvtpd_ps(_mm256_sub_pd(_mm256_loadu_pd(x), _mm256_loadu_pd(p)));
  const __m128 high =
      _mm256_cvtpd_ps(_mm256_sub_pd(_mm256_loadu_pd(x + 4), _mm256_loadu_pd(p + 4)));
  return _mm256_set_m128(high, low);
}

class Avx2 {
 public:
  static constexpr size_t kStep = 16;
  static constexpr bool kCompresses = false;
  struct Residuals {
    __m256 low, high;
  };

  Avx2(float scale, uint32_t min_key)
      : scale_(_mm256_set1_ps(scale)),
        below_(_mm256_set1_epi32(static_cast<int>(min_key) - 1)) {}  // keys fit in 31 bits

  template <class T>
  Residuals residuals(const T* x, const T* p) const {
    return {_mm256_mul_ps(residual8(x, p), scale_), _mm256_mul_ps(residual8(x + 8, p + 8), scale_)};
  }
  uint32_t hits(const Residuals& r) const { return hits(r.low) | hits(r.high) << 8; }
  void append(const Residuals& r, uint32_t hits, uint32_t base, Candidates out) const {
    alignas(32) float residuals[kStep];
    _mm256_store_ps(residuals, r.low);
    _mm256_store_ps(residuals + 8, r.high);
    append_hits(residuals, hits, base, out);
  }

 private:
  uint32_t hits(__m256 r) const {
    const __m256i key = _mm256_and_si256(_mm256_castps_si256(r), _mm256_set1_epi32(0x7fffffff));
    return static_cast<uint32_t>(
        _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(key, below_))));
  }

  __m256 scale_;
  __m256i below_;
};

}  // namespace

const CollectKernels kCollectAvx2 = kernels_with<Avx2>("avx2");

}  // namespace resfed

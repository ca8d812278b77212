// The fused pass, sixteen elements at a time, hits compressed without a branch. Compiled with
// -mavx512f; reached only after the processor was asked. Same operations as the scalar kernel,
// hence the same bits.
#include <immintrin.h>

#include "cpu/collect.hpp"

namespace resfed {
namespace {

__m512 load16(const float* p) { return _mm512_loadu_ps(p); }
__m512 load16(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
__m512 load16(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

template <class T>
__m512 residual16(const T* x, const T* p) {
  return _mm512_sub_ps(load16(x), load16(p));
}
__m512 residual16(const double* x, const double* p) {
  const auto half = [&](size_t at) {
    return _mm256_castps_pd(
        _mm512_cvtpd_ps(_mm512_sub_pd(_mm512_loadu_pd(x + at), _mm512_loadu_pd(p + at))));
  };
  return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castpd256_pd512(half(0)), half(8), 1));
}

class Avx512 {
 public:
  static constexpr size_t kStep = 16;
  static constexpr bool kCompresses = true;
  using Residuals = __m512;

  Avx512(float scale, uint32_t min_key)
      : scale_(_mm512_set1_ps(scale)),
        least_(_mm512_set1_epi32(static_cast<int>(min_key))) {}  // keys fit in 31 bits

  template <class T>
  __m512 residuals(const T* x, const T* p) const {
    return _mm512_mul_ps(residual16(x, p), scale_);
  }
  uint32_t hits(__m512 r) const {
    const __m512i key = _mm512_and_si512(_mm512_castps_si512(r), _mm512_set1_epi32(0x7fffffff));
    return _mm512_cmpge_epi32_mask(key, least_);
  }
  void append(__m512 r, uint32_t hits, uint32_t base, Candidates out) const {
    const auto mask = static_cast<__mmask16>(hits);
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i offsets = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(base)), lanes);
    _mm512_storeu_ps(out.residuals, _mm512_maskz_compress_ps(mask, r));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.offsets),
                        _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(mask, offsets)));
  }

 private:
  __m512 scale_;
  __m512i least_;
};
static_assert(Avx512::kStep <= kKernelSlack);

}  // namespace

const CollectKernels kCollectAvx512 = kernels_with<Avx512>("avx512");

}  // namespace resfed

// The fused pass, eight elements at a time. Compiled with -mavx2 -mf16c and without FMA; reached
// only after the processor was asked. Same operations as the scalar kernel, hence the same bits.
#include <immintrin.h>

#include <bit>

#include "core/select.hpp"
#include "cpu/residual.hpp"

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

template <class T>
size_t collect_avx2(const void* current, const void* reference, size_t n, float scale,
                    uint32_t base, uint32_t min_key, Candidate* out) {
  const T* const x = static_cast<const T*>(current);
  const T* const p = static_cast<const T*>(reference);
  const __m256 factor = _mm256_set1_ps(scale);
  const __m256i magnitude_bits = _mm256_set1_epi32(0x7fffffff);
  const __m256i below = _mm256_set1_epi32(static_cast<int>(min_key) - 1);  // keys fit in 31 bits
  size_t n_out = 0;
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256 r0 = _mm256_mul_ps(residual8(x + i, p + i), factor);
    const __m256 r1 = _mm256_mul_ps(residual8(x + i + 8, p + i + 8), factor);
    const __m256i hit0 =
        _mm256_cmpgt_epi32(_mm256_and_si256(_mm256_castps_si256(r0), magnitude_bits), below);
    const __m256i hit1 =
        _mm256_cmpgt_epi32(_mm256_and_si256(_mm256_castps_si256(r1), magnitude_bits), below);
    uint32_t hits = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(hit0))) |
                    static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(hit1))) << 8;
    if (hits == 0) continue;
    alignas(32) float r[16];
    _mm256_store_ps(r, r0);
    _mm256_store_ps(r + 8, r1);
    for (; hits != 0; hits &= hits - 1) {
      const unsigned lane = static_cast<unsigned>(std::countr_zero(hits));
      out[n_out++] = {base + static_cast<uint32_t>(i) + lane, r[lane]};
    }
  }
  for (; i < n; ++i) {
    const float r = residual(x[i], p[i]) * scale;
    if (magnitude_key(r) >= min_key) out[n_out++] = {base + static_cast<uint32_t>(i), r};
  }
  return n_out;
}

}  // namespace

const CollectKernels kCollectAvx2 = {
    "avx2",
    {collect_avx2<float>, collect_avx2<Half>, collect_avx2<BFloat16>, collect_avx2<double>},
};

}  // namespace resfed

// Sixteen lanes to a vector. Compiled with -mavx512f -mavx512bw; reached only after the processor
// was asked.
#include <immintrin.h>

#include "cpu/lanes_vector.hpp"

namespace resfed {
namespace {

struct Avx512 {
  static constexpr size_t kWidth = 16;
  using Vector = __m512i;
  using Mask = __mmask16;

  static Vector all(uint32_t number) { return _mm512_set1_epi32(static_cast<int>(number)); }
  static Vector load(const uint32_t* from) { return _mm512_load_si512(from); }
  static void store(uint32_t* to, Vector v) { _mm512_store_si512(to, v); }

  static Mask first(size_t n) { return static_cast<Mask>((1u << n) - 1); }
  static Mask nonzero(Vector v) { return _mm512_test_epi32_mask(v, v); }
  static Mask eq(Vector a, Vector b) { return _mm512_cmpeq_epi32_mask(a, b); }
  static Mask ge(Vector a, Vector b) { return _mm512_cmpge_epu32_mask(a, b); }
  static Mask both(Mask m, Mask n) { return m & n; }
  static Mask either(Mask m, Mask n) { return m | n; }
  static Mask without(Mask m, Mask n) { return static_cast<Mask>(m & ~n); }
  static uint32_t bits(Mask m) { return m; }
  static Vector ones(Mask m) { return _mm512_maskz_mov_epi32(m, all(~0u)); }

  static Vector add(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm512_sub_epi32(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm512_mullo_epi32(a, b); }
  static Vector min(Vector a, Vector b) { return _mm512_min_epu32(a, b); }
  static Vector band(Vector a, Vector b) { return _mm512_and_si512(a, b); }
  static Vector bor(Vector a, Vector b) { return _mm512_or_si512(a, b); }
  static Vector bxor(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
  template <unsigned kN>
  static Vector left(Vector v) {
    return _mm512_slli_epi32(v, kN);
  }
  template <unsigned kN>
  static Vector right(Vector v) {
    return _mm512_srli_epi32(v, kN);
  }
  static Vector left(Vector v, Vector n) { return _mm512_sllv_epi32(v, n); }
  static Vector right(Vector v, Vector n) { return _mm512_srlv_epi32(v, n); }
  static Vector select(Mask m, Vector a, Vector b) { return _mm512_mask_mov_epi32(b, m, a); }
  static Vector masked(Mask m, Vector v) { return _mm512_maskz_mov_epi32(m, v); }

  static Vector quotient(Vector a, Vector b) {
    return _mm512_cvttps_epu32(_mm512_div_ps(_mm512_cvtepu32_ps(a), _mm512_cvtepu32_ps(b)));
  }
  static Vector near_quotient(Vector a, Vector b) { return quotient(a, b); }

  class Table32 {
   public:
    template <class Function>
    explicit Table32(Function function) {
      alignas(64) uint32_t of[32];
      for (uint32_t i = 0; i < 32; ++i) of[i] = static_cast<uint32_t>(function(i));
      low_ = load(of);
      high_ = load(of + 16);
    }
    Vector operator[](Vector index) const { return _mm512_permutex2var_epi32(low_, index, high_); }

   private:
    Vector low_, high_;
  };
  class Table64 {
   public:
    template <class Function>
    explicit Table64(Function function) {
      alignas(64) uint16_t of[64];
      for (uint32_t i = 0; i < 64; ++i) of[i] = static_cast<uint16_t>(function(i));
      low_ = _mm512_load_si512(of);
      high_ = _mm512_load_si512(of + 32);
    }
    // Among numbers of 16 bits: what the high halves of the indices find is masked.
    Vector operator[](Vector index) const {
      return band(_mm512_permutex2var_epi16(low_, index, high_), all(0xffff));
    }

   private:
    Vector low_, high_;
  };

  static Vector expanded(Mask m, const uint16_t* words) {
    const __m256i next = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    return _mm512_maskz_expand_epi32(m, _mm512_cvtepu16_epi32(next));
  }
  static uint16_t* pushed(Mask m, Vector v, uint16_t* next) {
    const unsigned n = static_cast<unsigned>(std::popcount(static_cast<unsigned>(m)));
    const auto last = static_cast<Mask>(~(0xffffu >> n));
    const Vector words = _mm512_maskz_expand_epi32(last, _mm512_maskz_compress_epi32(m, v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(next - kWidth), _mm512_cvtepi32_epi16(words));
    return next - n;
  }
  static uint32_t symbol_at(const uint16_t (&starts)[kSymbols], uint32_t slot) {
    const __mmask32 not_after = _mm512_cmple_epu16_mask(
        _mm512_load_si512(starts), _mm512_set1_epi16(static_cast<int16_t>(slot)));
    return static_cast<uint32_t>(std::popcount(not_after)) - 1;
  }
};

}  // namespace

const uint16_t* decode_lanes_avx512(LaneArrays* lanes, uint64_t n_steps, uint64_t n_elems,
                                    const uint16_t* words, const uint16_t* end) {
  return decode_lanes_with<Avx512>(lanes, n_steps, n_elems, words, end);
}
uint16_t* encode_lanes_avx512(LaneCodes* lanes, const uint8_t* steps, uint64_t first, uint64_t last,
                              uint16_t* next) {
  return encode_lanes_with<Avx512>(lanes, steps, first, last, next);
}

}  // namespace resfed

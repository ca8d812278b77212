// Eight lanes to a vector. Compiled with -mavx2 -mpopcnt; reached only after the processor was
// asked.
#include <immintrin.h>

#include "cpu/lanes_vector.hpp"

namespace resfed {
namespace {

constexpr size_t kNumbers = 8;

// For each mask of eight bits, which numbers come where, so that the first ones go where it has
// bits, and so that those where it has bits end at the eighth place.
struct Shuffles {
  alignas(64) uint8_t expanding[256][kNumbers], pushing[256][kNumbers];
  constexpr Shuffles() : expanding(), pushing() {
    for (uint32_t mask = 0; mask < 256; ++mask) {
      uint8_t n = 0;
      const auto before = static_cast<uint8_t>(kNumbers - static_cast<size_t>(std::popcount(mask)));
      for (uint8_t i = 0; i < kNumbers; ++i) {
        if ((mask >> i & 1u) == 0) continue;
        expanding[mask][i] = n;
        pushing[mask][before + n] = i;
        ++n;
      }
    }
  }
};
constexpr Shuffles kShuffles;

struct Avx2 {
  static constexpr size_t kWidth = kNumbers;
  using Vector = __m256i;
  using Mask = __m256i;  // all bits of a number are alike

  static Vector all(uint32_t number) { return _mm256_set1_epi32(static_cast<int>(number)); }
  static Vector load(const uint32_t* from) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void store(uint32_t* to, Vector v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), v);
  }

  static Mask first(size_t n) {
    const Vector numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(all(static_cast<uint32_t>(n)), numbers);
  }
  static Mask nonzero(Vector v) { return bxor(eq(v, all(0)), all(~0u)); }
  static Mask eq(Vector a, Vector b) { return _mm256_cmpeq_epi32(a, b); }
  static Mask ge(Vector a, Vector b) { return eq(_mm256_max_epu32(a, b), a); }
  static Mask both(Mask m, Mask n) { return _mm256_and_si256(m, n); }
  static Mask either(Mask m, Mask n) { return _mm256_or_si256(m, n); }
  static Mask without(Mask m, Mask n) { return _mm256_andnot_si256(n, m); }
  static uint32_t bits(Mask m) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m)));
  }
  static Vector ones(Mask m) { return m; }

  static Vector add(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm256_sub_epi32(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm256_mullo_epi32(a, b); }
  static Vector min(Vector a, Vector b) { return _mm256_min_epu32(a, b); }
  static Vector band(Vector a, Vector b) { return _mm256_and_si256(a, b); }
  static Vector bor(Vector a, Vector b) { return _mm256_or_si256(a, b); }
  static Vector bxor(Vector a, Vector b) { return _mm256_xor_si256(a, b); }
  template <unsigned kN>
  static Vector left(Vector v) {
    return _mm256_slli_epi32(v, kN);
  }
  template <unsigned kN>
  static Vector right(Vector v) {
    return _mm256_srli_epi32(v, kN);
  }
  static Vector left(Vector v, Vector n) { return _mm256_sllv_epi32(v, n); }
  static Vector right(Vector v, Vector n) { return _mm256_srlv_epi32(v, n); }
  static Vector select(Mask m, Vector a, Vector b) { return _mm256_blendv_epi8(b, a, m); }
  static Vector masked(Mask m, Vector v) { return band(m, v); }

  static Vector quotient(Vector a, Vector b) {
    return _mm256_cvttps_epi32(_mm256_div_ps(_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)));
  }
  static Vector near_quotient(Vector a, Vector b) {  // conversions are of signed numbers
    const __m256 high = _mm256_mul_ps(_mm256_cvtepi32_ps(right<16>(a)), _mm256_set1_ps(65536.0f));
    const __m256 whole = _mm256_add_ps(high, _mm256_cvtepi32_ps(band(a, all(0xffff))));
    return _mm256_cvttps_epi32(_mm256_div_ps(whole, _mm256_cvtepi32_ps(b)));
  }

  template <size_t kN>
  class Table {
   public:
    template <class Function>
    explicit Table(Function function) {
      for (uint32_t i = 0; i < kN; ++i) of_[i] = static_cast<int>(function(i));
    }
    Vector operator[](Vector index) const { return _mm256_i32gather_epi32(of_, index, 4); }

   private:
    int of_[kN];
  };
  using Table32 = Table<32>;
  using Table64 = Table<64>;

  static Vector shuffled(Vector v, const uint8_t (&which)[kNumbers]) {
    const __m128i numbers = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(which));
    return _mm256_permutevar8x32_epi32(v, _mm256_cvtepu8_epi32(numbers));
  }
  static Vector expanded(Mask m, const uint16_t* words) {
    const __m128i next = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
    return masked(m, shuffled(_mm256_cvtepu16_epi32(next), kShuffles.expanding[bits(m)]));
  }
  static uint16_t* pushed(Mask m, Vector v, uint16_t* next) {
    const uint32_t mask = bits(m);
    const Vector words = band(shuffled(v, kShuffles.pushing[mask]), all(0xffff));
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(next - kWidth), packed);
    return next - std::popcount(mask);
  }
  static uint32_t symbol_at(const uint16_t (&starts)[kSymbols], uint32_t slot) {
    const __m256i slots = _mm256_set1_epi16(static_cast<int16_t>(slot));
    const auto* const halves = reinterpret_cast<const __m256i*>(starts);
    const __m256i low = _mm256_cmpgt_epi16(_mm256_load_si256(halves), slots);
    const __m256i high = _mm256_cmpgt_epi16(_mm256_load_si256(halves + 1), slots);
    const int after = _mm256_movemask_epi8(_mm256_packs_epi16(low, high));
    return kSymbols - 1 - static_cast<uint32_t>(std::popcount(static_cast<uint32_t>(after)));
  }
};

}  // namespace

const uint16_t* decode_lanes_avx2(LaneArrays* lanes, uint64_t n_steps, uint64_t n_elems,
                                  const uint16_t* words, const uint16_t* end) {
  return decode_lanes_with<Avx2>(lanes, n_steps, n_elems, words, end);
}
uint16_t* encode_lanes_avx2(LaneCodes* lanes, const uint8_t* steps, uint64_t first, uint64_t last,
                            uint16_t* next) {
  return encode_lanes_with<Avx2>(lanes, steps, first, last, next);
}

}  // namespace resfed

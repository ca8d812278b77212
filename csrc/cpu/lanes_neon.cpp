// Four lanes to a vector, for aarch64, where NEON is always there.
#include <arm_neon.h>

#include <array>

#include "cpu/lanes_vector.hpp"

namespace resfed {
namespace {

constexpr size_t kNumbers = 4;

// For each mask of four bits, which bytes come where: words go where it has bits, and what stands
// where it has bits goes to the end. There is no byte 255: it stands for 0.
struct Shuffles {
  alignas(64) uint8_t expanding[16][16], pushing[16][8];
  constexpr Shuffles() : expanding(), pushing() {
    for (uint32_t mask = 0; mask < 16; ++mask) {
      uint8_t n = 0;
      const auto before = kNumbers - static_cast<size_t>(std::popcount(mask));
      for (uint8_t& byte : expanding[mask]) byte = 255;
      for (uint8_t& byte : pushing[mask]) byte = 255;
      for (uint8_t i = 0; i < kNumbers; ++i) {
        if ((mask >> i & 1u) == 0) continue;
        for (uint8_t byte = 0; byte < 2; ++byte) {
          expanding[mask][4 * i + byte] = static_cast<uint8_t>(2 * n + byte);
          pushing[mask][2 * (before + n) + byte] = static_cast<uint8_t>(4 * i + byte);
        }
        ++n;
      }
    }
  }
};
constexpr Shuffles kShuffles;

struct Neon {
  static constexpr size_t kWidth = kNumbers;
  using Vector = uint32x4_t;
  using Mask = uint32x4_t;  // all bits of a number are alike

  static Vector all(uint32_t number) { return vdupq_n_u32(number); }
  static Vector load(const uint32_t* from) { return vld1q_u32(from); }
  static void store(uint32_t* to, Vector v) { vst1q_u32(to, v); }

  static Mask first(size_t n) {
    constexpr std::array<uint32_t, kNumbers> numbers = {0, 1, 2, 3};
    return vcltq_u32(load(numbers.data()), all(static_cast<uint32_t>(n)));
  }
  static Mask nonzero(Vector v) { return vtstq_u32(v, v); }
  static Mask eq(Vector a, Vector b) { return vceqq_u32(a, b); }
  static Mask ge(Vector a, Vector b) { return vcgeq_u32(a, b); }
  static Mask both(Mask m, Mask n) { return vandq_u32(m, n); }
  static Mask either(Mask m, Mask n) { return vorrq_u32(m, n); }
  static Mask without(Mask m, Mask n) { return vbicq_u32(m, n); }
  static uint32_t bits(Mask m) {
    constexpr std::array<uint32_t, kNumbers> weights = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m, load(weights.data())));
  }
  static Vector ones(Mask m) { return m; }

  static Vector add(Vector a, Vector b) { return vaddq_u32(a, b); }
  static Vector sub(Vector a, Vector b) { return vsubq_u32(a, b); }
  static Vector mul(Vector a, Vector b) { return vmulq_u32(a, b); }
  static Vector min(Vector a, Vector b) { return vminq_u32(a, b); }
  static Vector band(Vector a, Vector b) { return vandq_u32(a, b); }
  static Vector bor(Vector a, Vector b) { return vorrq_u32(a, b); }
  static Vector bxor(Vector a, Vector b) { return veorq_u32(a, b); }
  template <unsigned kN>
  static Vector left(Vector v) {
    return vshlq_n_u32(v, kN);
  }
  template <unsigned kN>
  static Vector right(Vector v) {
    return vshrq_n_u32(v, kN);
  }
  static Vector left(Vector v, Vector n) { return vshlq_u32(v, vreinterpretq_s32_u32(n)); }
  static Vector right(Vector v, Vector n) {
    return vshlq_u32(v, vnegq_s32(vreinterpretq_s32_u32(n)));
  }
  static Vector select(Mask m, Vector a, Vector b) { return vbslq_u32(m, a, b); }
  static Vector masked(Mask m, Vector v) { return vandq_u32(m, v); }

  static Vector quotient(Vector a, Vector b) {
    return vcvtq_u32_f32(vdivq_f32(vcvtq_f32_u32(a), vcvtq_f32_u32(b)));
  }
  static Vector near_quotient(Vector a, Vector b) { return quotient(a, b); }

  // 64 bytes, four for each of 16 indices.
  static uint8x16_t bytes_at(const uint8_t (&of)[64], uint8x16_t index, uint8x16_t beyond) {
    const uint8x16x4_t bytes = {vld1q_u8(of), vld1q_u8(of + 16), vld1q_u8(of + 32),
                                vld1q_u8(of + 48)};
    return vqtbx4q_u8(beyond, bytes, index);
  }
  // A byte of each number after the other: those of the low half, then those of the high half.
  class Table32 {
   public:
    template <class Function>
    explicit Table32(Function function) {
      for (uint32_t i = 0; i < 32; ++i) {
        const auto number = static_cast<uint32_t>(function(i));
        for (uint32_t byte = 0; byte < 2; ++byte) {
          low_[32 * byte + i] = static_cast<uint8_t>(number >> 8 * byte);
          high_[32 * byte + i] = static_cast<uint8_t>(number >> (16 + 8 * byte));
        }
      }
    }
    Vector operator[](Vector index) const {
      const uint8x16_t places =
          vreinterpretq_u8_u32(add(mul(index, all(0x01010101)), all(0x60402000)));
      const uint8x16_t high = bytes_at(high_, vsubq_u8(places, vdupq_n_u8(64)), vdupq_n_u8(0));
      return vreinterpretq_u32_u8(bytes_at(low_, places, high));
    }

   private:
    uint8_t low_[64], high_[64];
  };
  class Table64 {
   public:
    template <class Function>
    explicit Table64(Function function) {
      for (uint32_t i = 0; i < 64; ++i) of_[i] = static_cast<uint8_t>(function(i));
    }
    Vector operator[](Vector index) const {
      const uint8x16_t found = bytes_at(of_, vreinterpretq_u8_u32(index), vdupq_n_u8(0));
      return band(vreinterpretq_u32_u8(found), all(0xff));
    }

   private:
    uint8_t of_[64];
  };

  static Vector expanded(Mask m, const uint16_t* words) {
    const uint16x8_t next = vcombine_u16(vld1_u16(words), vdup_n_u16(0));
    const uint8x16_t which = vld1q_u8(kShuffles.expanding[bits(m)]);
    return vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u16(next), which));
  }
  static uint16_t* pushed(Mask m, Vector v, uint16_t* next) {
    const uint32_t mask = bits(m);
    const uint8x8_t which = vld1_u8(kShuffles.pushing[mask]);
    vst1_u8(reinterpret_cast<uint8_t*>(next - kWidth), vqtbl1_u8(vreinterpretq_u8_u32(v), which));
    return next - std::popcount(mask);
  }
  static uint32_t symbol_at(const uint16_t (&starts)[kSymbols], uint32_t slot) {
    const uint16x8_t slots = vdupq_n_u16(static_cast<uint16_t>(slot));
    uint16x8_t not_after = vcleq_u16(vld1q_u16(starts), slots);  // minus 1 each
    for (size_t i = 8; i < kSymbols; i += 8) {
      not_after = vaddq_u16(not_after, vcleq_u16(vld1q_u16(starts + i), slots));
    }
    return static_cast<uint16_t>(-vaddvq_u16(not_after)) - 1u;
  }
};

}  // namespace

const uint16_t* decode_lanes_neon(LaneArrays* lanes, uint64_t n_steps, uint64_t n_elems,
                                  const uint16_t* words, const uint16_t* end) {
  return decode_lanes_with<Neon>(lanes, n_steps, n_elems, words, end);
}
uint16_t* encode_lanes_neon(LaneCodes* lanes, const uint8_t* steps, uint64_t first, uint64_t last,
                            uint16_t* next) {
  return encode_lanes_with<Neon>(lanes, steps, first, last, next);
}

}  // namespace resfed

// The fused pass for aarch64, sixteen elements at a time. NEON is always there. Same operations as
// the scalar kernel, hence the same bits.
#include <arm_neon.h>

#include "cpu/collect.hpp"

namespace resfed {
namespace {

float32x4_t load4(const float* p) { return vld1q_f32(p); }
float32x4_t load4(const Half* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
}
float32x4_t load4(const BFloat16* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
}

template <class T>
float32x4_t residual4(const T* x, const T* p) {
  return vsubq_f32(load4(x), load4(p));
}
float32x4_t residual4(const double* x, const double* p) {
  const float32x2_t low = vcvt_f32_f64(vsubq_f64(vld1q_f64(x), vld1q_f64(p)));
  return vcvt_high_f32_f64(low, vsubq_f64(vld1q_f64(x + 2), vld1q_f64(p + 2)));
}

class Neon {
 public:
  static constexpr size_t kStep = 16;
  static constexpr bool kCompresses = false;
  struct Residuals {
    float32x4_t part[4];
  };

  Neon(float scale, uint32_t min_key) : scale_(scale), least_(vdupq_n_u32(min_key)) {}

  template <class T>
  Residuals residuals(const T* x, const T* p) const {
    Residuals r;
    for (size_t i = 0; i < 4; ++i) {
      r.part[i] = vmulq_n_f32(residual4(x + 4 * i, p + 4 * i), scale_);
    }
    return r;
  }
  uint32_t hits(const Residuals& r) const {
    uint32x4_t hit[4];
    for (size_t i = 0; i < 4; ++i) {
      const uint32x4_t key = vandq_u32(vreinterpretq_u32_f32(r.part[i]), vdupq_n_u32(0x7fffffff));
      hit[i] = vcgeq_u32(key, least_);
    }
    const uint16x8_t low = vcombine_u16(vmovn_u32(hit[0]), vmovn_u32(hit[1]));
    const uint16x8_t high = vcombine_u16(vmovn_u32(hit[2]), vmovn_u32(hit[3]));
    if (vmaxvq_u16(vorrq_u16(low, high)) == 0) return 0;
    const uint16_t bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint16x8_t bit = vld1q_u16(bits);
    return static_cast<uint32_t>(vaddvq_u16(vandq_u16(low, bit))) |
           static_cast<uint32_t>(vaddvq_u16(vandq_u16(high, bit))) << 8;
  }
  void append(const Residuals& r, uint32_t hits, uint32_t base, Candidates out) const {
    float residuals[kStep];
    for (size_t i = 0; i < 4; ++i) vst1q_f32(residuals + 4 * i, r.part[i]);
    append_hits(residuals, hits, base, out);
  }

 private:
  float scale_;
  uint32x4_t least_;
};

}  // namespace

const CollectKernels kCollectNeon = kernels_with<Neon>("neon");

}  // namespace resfed

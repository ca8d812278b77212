// The fused pass over consecutive elements of a tensor: its logic once, for kernels of any
// instruction set.
#pragma once

#include <bit>

#include "cpu/residual.hpp"
#include "numeric/select.hpp"

namespace resfed {

// Elements [i, n) without vector instructions: the definition of the result. Each candidate is
// written before it is known whether it counts. Static: the copy of one instruction set must not
// become that of all.
template <class T>
static size_t collect_one_by_one(const T* x, const T* p, size_t i, size_t n, float scale,
                                 uint32_t base, uint32_t min_key, Candidates out) {
  size_t n_out = 0;
  for (; i < n; ++i) {
    const float r = difference(x[i], p[i]) * scale;
    out.offsets[n_out] = static_cast<uint16_t>(base + i);
    out.residuals[n_out] = r;
    n_out += magnitude_key(r) >= min_key ? 1 : 0;
  }
  return n_out;
}

// An Isa looks at kStep elements together:
//   Isa::kCompresses   whether append() is quick enough to be called without a hit, too
//   Isa(scale, min_key)
//   Isa::Residuals  residuals(x, p)      scaled, of kStep elements
//   uint32_t        hits(residuals)      one bit for each, set if its key is at least min_key
//   void            append(residuals, hits, base, out)   not more than kKernelSlack too many
template <class Isa, class T>
size_t collect_with(const void* current, const void* reference, size_t n, float scale,
                    uint32_t base, uint32_t min_key, Candidates out) {
  const T* const x = static_cast<const T*>(current);
  const T* const p = static_cast<const T*>(reference);
  const Isa isa(scale, min_key);
  size_t n_out = 0;
  size_t i = 0;
  for (; i + Isa::kStep <= n; i += Isa::kStep) {
    const typename Isa::Residuals r = isa.residuals(x + i, p + i);
    const uint32_t hits = isa.hits(r);
    if (!Isa::kCompresses && hits == 0) continue;
    isa.append(r, hits, base + static_cast<uint32_t>(i), out.from(n_out));
    n_out += static_cast<size_t>(std::popcount(hits));
  }
  return n_out + collect_one_by_one(x, p, i, n, scale, base, min_key, out.from(n_out));
}

template <class Isa>
constexpr CollectKernels kernels_with(const char* name) {
  return {name,
          {collect_with<Isa, float>, collect_with<Isa, Half>, collect_with<Isa, BFloat16>,
           collect_with<Isa, double>}};
}

// For an Isa that cannot compress: one hit after another.
inline void append_hits(const float* residuals, uint32_t hits, uint32_t base, Candidates out) {
  for (size_t n = 0; hits != 0; hits &= hits - 1, ++n) {
    const unsigned lane = static_cast<unsigned>(std::countr_zero(hits));
    out.offsets[n] = static_cast<uint16_t>(base + lane);
    out.residuals[n] = residuals[lane];
  }
}

}  // namespace resfed

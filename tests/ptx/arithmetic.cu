// Compares the arithmetic of numeric/ and entropy/ on the device with the host, value by value,
// over ranges that a model small enough for a simulator cannot cover.
#include <cuda_runtime.h>

#include <cstdio>
#include <vector>

#include "cuda/launch.cuh"
#include "entropy/rans.hpp"
#include "entropy/slice.hpp"
#include "numeric/check.hpp"
#include "numeric/quantize.hpp"
#include "numeric/residual.hpp"
#include "runtime.hpp"

using namespace resfed;

namespace {

// A hash of all results.
struct Digest {
  uint64_t value = 0;
  RESFED_HD void add(uint64_t number) { value = mix64(value ^ number); }
};

// Every probability: coding and decoding both bits with states of any size, the context update, and
// the stored slots.
struct Coding {
  RESFED_HD uint64_t operator()(uint64_t i) const {
    Digest digest;
    const uint32_t p = 1 + static_cast<uint32_t>(i) % (kProbOne - 1);
    const uint64_t random = mix64(i);
    const auto full = static_cast<uint32_t>(random) | kRansLow;
    for (uint32_t bit = 0; bit < 2; ++bit) {
      const Slots slots = slots_of_bit(bit != 0, p);
      const Slots again = unpacked_slots(packed_slots(slots_by_mask(mask_of(bit != 0), p)));
      digest.add(packed_slots(slots));
      digest.add(again.start);
      digest.add(again.freq);
      uint32_t state = full >> (random >> 32) % 16 | kRansLow, taken = state;
      uint16_t word = 0;
      digest.add(rans_put(state, slots, &word));
      digest.add(word);
      digest.add(state);
      digest.add(bit != 0 ? rans_take(taken, p) : rans_take_branchless(taken, p));
      digest.add(taken);
      const auto count = static_cast<uint32_t>((random >> 40) % (kMaxCount + 1));
      Probability context{static_cast<uint16_t>(4 * p), static_cast<uint16_t>(random >> 48),
                          static_cast<uint16_t>(kWarmedUp + count), 0};
      update(context, bit != 0);
      digest.add(context.fast);
      digest.add(context.slow);
      digest.add(context.warmup);
    }
    const unsigned n_bits = 1 + static_cast<uint32_t>(random) % kMaxRawBits;
    uint32_t state = full;
    digest.add(rans_take_bypass(state, n_bits));
    digest.add(state);
    const auto bits = static_cast<uint32_t>(random >> 20) % (1u << n_bits);
    const Slots number = slots_of_bypass(bits, n_bits);
    const Slots kept = unpacked_slots(packed_slots(number));
    digest.add(kept.start);
    digest.add(kept.freq);
    return digest.value;
  }
};

// All float16 and bfloat16 patterns, and as many float32 and float64 values of all exponents.
struct Floats {
  RESFED_HD uint64_t operator()(uint64_t i) const {
    Digest digest;
    const uint64_t random = mix64(i);
    const auto bits = static_cast<uint16_t>(i);
    const Half half{bits}, other_half{static_cast<uint16_t>(random & 0x7bff)};
    const BFloat16 short_float{bits}, other_short{static_cast<uint16_t>(random & 0x7f7f)};
    const float wide = float_from_bits(static_cast<uint32_t>(random));
    const float tiny = float_from_bits(static_cast<uint32_t>(random) & 0x80ffffffu);
    const double whole = double_from_bits(mix64(random));
    const auto add = [&](float value) {  // IEEE does not define a NaN's bits
      digest.add(is_finite_key(magnitude_key(value)) ? float_bits(value) : 1u << 31);
    };
    add(widen(half));
    add(widen(short_float));
    add(residual(half, other_half));
    add(residual(short_float, other_short));
    add(residual(wide, tiny));
    add(residual(whole, static_cast<double>(wide)));
    if (is_finite_key(magnitude_key(wide))) {
      digest.add(narrow_to_half(wide).bits);
      digest.add(
          narrow_to_half(float_from_bits((float_bits(wide) & 0x8fffffffu) | 0x30000000u)).bits);
      digest.add(narrow_to_bfloat16(wide).bits);
      digest.add(narrow_to_bfloat16(tiny).bits);
      add(recover(tiny, wide));
      digest.add(recover(other_half, wide).bits);
      digest.add(recover(other_short, wide).bits);
      digest.add(double_bits(recover(static_cast<double>(tiny), wide)));
    }
    return digest.value;
  }
};

// Quantizers of all sizes, and magnitudes above their thresholds.
struct Quantizing {
  RESFED_HD uint64_t operator()(uint64_t i) const {
    Digest digest;
    const uint64_t random = mix64(i ^ 0x51ce);
    const auto key = static_cast<uint32_t>(random) % kFloatMaxBits + 1;
    const uint32_t kind = static_cast<uint32_t>(i) % 3;
    const float least = float_from_bits(key);
    const auto room = static_cast<uint32_t>(kFloatMaxBits - key);
    const auto above = static_cast<uint32_t>((random >> 33) & 0x1fffffffu);
    const float most = float_from_bits(key + min_of(above, room));
    StepRule rule;
    if (kind == 1) rule.bits = 1 + static_cast<unsigned>(random >> 60);
    if (kind == 2) rule.ratio = 0.01 + static_cast<double>(random >> 44) * 0x1p-16;
    const uint64_t count = 1 + i % 1024;
    const double squares = static_cast<double>(most) * most * static_cast<double>(count);
    const double finest = finest_automatic_step(squares, 1 + i % 512);
    digest.add(may_be_too_fine(rule, least, squares, count));
    Quantizer q = fit_quantizer(rule, least, most, i % 2 == 0 ? 0.0 : finest);
    digest.add(float_bits(q.step));
    LevelMeans means{};
    for (uint32_t part = 0; part <= 4; ++part) {
      const Quantized at = quantize(q, float_from_bits(key + min_of(above, room) / 4 * part));
      means.add(at);
      digest.add(at.level);
      digest.add(at.position);
      digest.add(float_bits(dequantize_magnitude(q, at.level)));
    }
    means.complete(&q);
    for (uint32_t level = 1; level <= 5; ++level) {
      digest.add(float_bits(dequantize_magnitude(q, level)));
    }
    return digest.value;
  }
};

template <class Compute>
__global__ void compute_each(Compute compute, uint64_t n, uint64_t* out) {
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; i < n;
       i += step) {
    out[i] = compute(i);
  }
}

template <class Compute>
size_t differences(const char* what, uint64_t n) {
  const Compute compute;
  const ptx::Block memory(n * sizeof(uint64_t));
  auto* const on_device = static_cast<uint64_t*>(memory.data());
  cuda::launch(compute_each<Compute>, 32, 256, nullptr, compute, n, on_device);
  std::vector<uint64_t> got(n);
  cuda::copy_to_host(got.data(), on_device, n * sizeof(uint64_t), 0, nullptr);
  size_t n_different = 0;
  for (uint64_t i = 0; i < n; ++i) {
    if (got[i] == compute(i)) continue;
    if (++n_different <= 5) std::printf("%s: differs at %llu\n", what, (unsigned long long)i);
  }
  std::printf("SAYS: %s: %llu values, %zu differ\n", what, (unsigned long long)n, n_different);
  return n_different;
}

}  // namespace

size_t ptx::arithmetic_differences() {
  return differences<Coding>("coding", 2 * (kProbOne - 1)) +
         differences<Floats>("floats", 1u << 16) + differences<Quantizing>("quantizing", 1u << 14);
}

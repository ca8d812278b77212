// Compares the arithmetic of numeric/ and entropy/ on the device with the host, value by value,
// over ranges that a model small enough for a simulator cannot cover.
#include <cuda_runtime.h>

#include <cstdio>
#include <vector>

#include "cuda/launch.cuh"
#include "entropy/interleaved_rans.hpp"
#include "entropy/lane_symbols.hpp"
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

// Every frequency: a symbol put on states of any size and taken off again; symbols and contexts of
// gaps and levels of any size, in blocks of any size.
struct Coding {
  RESFED_HD uint64_t operator()(uint64_t i) const {
    Digest digest;
    const uint64_t random = mix64(i);
    const uint32_t freq = 1 + static_cast<uint32_t>(i) % (kFrequencyOne - 1);
    const auto start = static_cast<uint32_t>(random >> 40) % (kFrequencyOne - freq + 1);
    const Slots slots{static_cast<uint16_t>(start), static_cast<uint16_t>(freq)};
    const uint32_t least = max_of(freq << 4, 1u), limit = lane_limit(freq);
    for (const uint32_t state :
         {least, limit - 1, least + static_cast<uint32_t>(random) % (limit - least)}) {
      const uint32_t with = with_symbol(state, slots);
      digest.add(with);
      digest.add(without_symbol(with, slots));
    }
    const auto size = 2 + static_cast<uint32_t>(random) % (kMaxBlock - 1);
    LaneContexts<true> contexts;
    contexts.block = {(i & 1) != 0 ? size : 0, static_cast<uint32_t>(random >> 20) % size};
    for (unsigned n = 0; n < 8; ++n) {
      const uint64_t next = mix64(random + n);
      const auto low = static_cast<uint32_t>(next);
      const uint64_t gap = (next >> 1 >> low % 63) | 1;
      const uint64_t level = (mix64(next) >> low % 64) | 1;
      const unsigned shift = static_cast<uint32_t>(next >> 32) % (kMostShift + 1);
      const uint32_t symbol = level_symbol(level, shift);
      const RestOfLevel rest = rest_of_level(level, symbol, shift);
      digest.add(contexts.gap_row());
      digest.add(gap_symbol(gap));
      contexts.add_gap(gap, floor_log2(gap));
      digest.add(contexts.level_row());
      digest.add(symbol);
      if (symbol != kLevelEscape) digest.add(first_level(symbol, shift));
      for_each_piece_backwards(rest.bits, rest.n_bits,
                               [&](uint32_t piece, unsigned n) { digest.add(n << 16 | piece); });
      contexts.add_level(symbol + (low % 3 == 0 ? kSignChanged : 0));
    }
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
  return differences<Coding>("coding", 4 * (kFrequencyOne - 1)) +
         differences<Floats>("floats", 1u << 16) + differences<Quantizing>("quantizing", 1u << 14);
}

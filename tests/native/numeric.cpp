// The arithmetic of csrc/numeric: rounding, quantization, exact sums, selection.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "expect.hpp"
#include "numeric/check.hpp"
#include "numeric/exact_mean.hpp"
#include "numeric/exact_sum.hpp"
#include "numeric/quantize.hpp"
#include "numeric/residual.hpp"
#include "numeric/select.hpp"

using namespace resfed;

static float after(float value) { return std::nextafter(value, INFINITY); }
static float before(float value) { return std::nextafter(value, -INFINITY); }

// Every finite number of a 16-bit type, and what lies around the middle to the next one.
template <class T, class Narrow>
static void narrowing(uint16_t largest, Narrow narrow) {
  for (uint32_t bits = 0; bits <= largest; ++bits) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      const float value = widen(T{static_cast<uint16_t>(bits | sign)});
      EXPECT(narrow(value).bits == (bits | sign));
    }
    if (bits == largest) break;
    const float low = widen(T{static_cast<uint16_t>(bits)});
    const float high = widen(T{static_cast<uint16_t>(bits + 1)});
    const float middle = low + (high - low) / 2;  // exact: both types have fewer bits
    EXPECT(narrow(middle).bits == bits + (bits & 1u));
    EXPECT(narrow(before(middle)).bits == bits && narrow(after(middle)).bits == bits + 1);
    EXPECT(narrow(-middle).bits == (0x8000u | (bits + (bits & 1u))));
  }
  const float most = std::numeric_limits<float>::max();
  EXPECT(narrow(most).bits == largest && narrow(-most).bits == (0x8000u | largest));
}

static void recovery() {
  const float most = std::numeric_limits<float>::max();
  EXPECT(recover(most, most) == most && recover(-most, -most) == -most);
  EXPECT(recover(1.0f, after(1.0f)) == 2.0f);  // one rounding, ties to even
  const double wide = std::numeric_limits<double>::max();
  EXPECT(recover(wide, most) == wide);
  EXPECT(recover(Half{kHalfMaxBits}, 1e6f).bits == kHalfMaxBits);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT(residual(nan, nan) == 0.0f && residual(INFINITY, INFINITY) == 0.0f);
  EXPECT(!is_finite_key(magnitude_key(residual(nan, 1.0f))));
  EXPECT(residual(1.0, 1.0 - 0x1p-53) == 0x1p-53f);  // subtracted in float64, then rounded
}

static void quantization() {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    Quantizer q;
    q.threshold =
        std::ldexp(1 + static_cast<float>(random() % 1000) / 1000, int(random() % 200) - 80);
    q.step = q.threshold * (0.1f + static_cast<float>(random() % 1000) / 100);
    q.n_offsets = static_cast<uint32_t>(random()) % (kMaxOffsets + 1);
    std::fill(q.offsets, q.offsets + kMaxOffsets, kMiddleOffset);
    EXPECT(quantize(q, q.threshold).level == 1 && quantize(q, q.threshold).position == 0);
    uint32_t last = 1;
    for (float m = q.threshold; m < 100 * q.threshold; m *= 1.1f) {
      const Quantized quantized = quantize(q, m);
      EXPECT(quantized.level >= std::max(last, 1u) && quantized.position <= 65535);
      last = quantized.level;
      EXPECT(std::abs(dequantize_magnitude(q, last) - m) <= 0.51f * q.step);
    }
    EXPECT(quantize(q, std::numeric_limits<float>::max()).level <= kMaxLevel);
    EXPECT(std::isfinite(dequantize_magnitude(q, kMaxLevel)));
    q.max_level = 3;
    EXPECT(quantize(q, std::numeric_limits<float>::max()).level == 3);
  }

  LevelMeans means{};
  Quantizer q;
  means.add(Quantized{1, 0});
  means.add(Quantized{1, 65535});
  means.add(Quantized{3, 256 * 7});
  means.complete(&q);
  EXPECT(q.n_offsets == 3 && q.offsets[0] == 128 && q.offsets[1] == kMiddleOffset);
  EXPECT(q.offsets[2] == 7);
  for (int e = CurrentFormat::kMinExponent; e <= CurrentFormat::kMaxExponent; ++e) {
    EXPECT(power_of_two(e) == std::ldexp(1.0f, e));
  }
}

static void exact_sums() {
  std::mt19937 random(2);
  std::vector<float> values;
  while (values.size() < 20'000) {
    const float value = float_from_bits(static_cast<uint32_t>(random()));
    if (is_finite_key(magnitude_key(value))) values.push_back(value);
  }
  const auto sum = [](const std::vector<float>& of) {
    ExactSquares squares;
    for (const float value : of) squares.add(value);
    return squares;
  };
  const ExactSquares all = sum(values);
  std::vector<float> shuffled = values;
  std::shuffle(shuffled.begin(), shuffled.end(), random);
  EXPECT(double_bits(sum(shuffled).value()) == double_bits(all.value()));
  const std::vector<float> half(shuffled.begin(), shuffled.begin() + 10'000);
  ExactSquares rest = all;
  rest.subtract(sum(half));
  rest.add(sum(half));
  EXPECT(rest.value() == all.value());
  EXPECT(sum({}).value() == 0 && sum({-3.0f, 4.0f}).value() == 25);
  EXPECT(sum({0x1p-149f}).value() == 0x1p-298);
  EXPECT(sum({1e19f, 1e-19f, 1e19f}).value() == 2 * (double(1e19f) * double(1e19f)));
}

// The compiler's own conversion of 128 bits rounds to the nearest, too.
static void exact_means() {
  std::mt19937_64 random(4);
  for (int i = 0; i < 100'000; ++i) {
    int128 value = static_cast<int128>(random()) << 64 | random();
    value >>= random() % 128;
    if (i % 4 == 1) value &= ~((int128{1} << random() % 127) - 1);  // ties
    if (i % 4 == 2) value |= 1;
    EXPECT(nearest_double(value) == static_cast<double>(value));
    int128 sum = value;
    int64_t carry = 0;
    carry_over(&sum, &carry);
    EXPECT(sum >= 0 && sum >> kCarryLog2 == 0);
    EXPECT(nearest_double(carry, sum) == nearest_double(value));
    const int128 weight = 1 + static_cast<int128>(random() >> random() % 64);
    EXPECT(rounded_quotient(carry, sum, weight, 0) == rounded_quotient(0, value, weight, 0));
  }
  const int128 least = int128{1} << 126, most = 2 * (least - 1) + 1;
  EXPECT(nearest_double(0) == 0 && nearest_double(most) == 0x1p127);
  EXPECT(nearest_double(-2 * least) == -0x1p127);
  EXPECT(to_units(0x1p-80) == 1 && to_units(-1.5) == -(int128{3} << 79));
  EXPECT(magnitude_bits(-NAN) > magnitude_bits(INFINITY));
  EXPECT(magnitude_bits(double_from_bits(~uint64_t{0})) == magnitude_bits(NAN));
  EXPECT(float_bits(float_mean(-0.0f, 1, -(int128{1} << kCarryLog2), 3)) == float_bits(-0.0f));
}

static void selection() {
  const float ascending[] = {0.0f, 0x1p-149f, 1e-40f, 1e-38f, 1.0f, after(1.0f), 3e38f};
  for (size_t i = 0; i + 1 < std::size(ascending); ++i) {
    EXPECT(magnitude_key(ascending[i]) < magnitude_key(ascending[i + 1]));
    EXPECT(magnitude_key(-ascending[i]) == magnitude_key(ascending[i]));
  }
  EXPECT(!is_finite_key(magnitude_key(-INFINITY)) && !is_finite_key(magnitude_key(NAN)));
  EXPECT(is_finite_key(magnitude_key(std::numeric_limits<float>::max())));
  std::mt19937 random(3);
  for (int i = 0; i < 10'000; ++i) {
    const uint32_t key = static_cast<uint32_t>(random()) >> 1;
    uint32_t joined = 0;
    for (unsigned d = 0; d < kDigits; ++d) joined |= digit_of(key, d) << digit_shift(d);
    EXPECT(joined == key && digit_of(key, 0) < 1u << kDigitBits);
  }
  for (uint64_t which = 0; which < 1000; ++which) {
    const uint64_t index = sampled_index(37, which);
    EXPECT(index >= 37 * which && index < 37 * (which + 1));
  }
  EXPECT(check_term(0, 0, 1) != check_term(1, 0, 1) && check_term(0, 1, 0) != check_term(0, 0, 1));
}

int main() {
  narrowing<Half>(kHalfMaxBits, narrow_to_half);
  narrowing<BFloat16>(kBFloat16MaxBits, narrow_to_bfloat16);
  recovery();
  quantization();
  exact_sums();
  exact_means();
  selection();
}

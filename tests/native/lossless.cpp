// Lossless tensors: bit patterns and their changes, the order of exponents, byte planes.
#include "cpu/lossless.hpp"

#include <algorithm>
#include <random>
#include <vector>

#include "cpu/byte_planes.hpp"
#include "entropy/frequencies.hpp"
#include "expect.hpp"
#include "format/bits.hpp"

using namespace resfed;

// ---- Bit patterns

constexpr Patterns kBytes{8, 0}, kShorts{16, 0}, kInts{32, 0}, kLongs{64, 0};
constexpr Patterns kHalfs{16, 10}, kBFloats{16, 7}, kFloats{32, 23}, kDoubles{64, 52};

static void expect_change(const Patterns& p, uint64_t before, uint64_t after) {
  const int64_t change = p.change(before, after);
  const int64_t most = static_cast<int64_t>(p.mask() >> 1);  // of a signed number of this width
  EXPECT(change >= -most - 1 && change <= most);
  EXPECT((change == 0) == (before == after) && p.is_change(change) == (change != 0));
  EXPECT(p.changed(before, change) == after);
}

// Ascending as signed numbers with the values of the floats.
template <class Bits>
static void expect_order(const Patterns& p, uint16_t infinity) {
  for (uint32_t magnitude = 0; magnitude < infinity; ++magnitude) {
    const uint32_t negative = 0x8000u | magnitude;
    EXPECT(p.change(magnitude, magnitude + 1) == 1 && p.change(magnitude + 1, magnitude) == -1);
    EXPECT(p.change(negative, negative + 1) == 1 && p.change(negative + 1, negative) == -1);
    EXPECT(widen(Bits{static_cast<uint16_t>(magnitude)}) <
           widen(Bits{static_cast<uint16_t>(magnitude + 1)}));
  }
  // Through zero: positive moves away from it, the signs are those of the number before.
  EXPECT(p.change(0x0000, 0x8000) == -1 && p.change(0x8000, 0x0000) == -1);
  EXPECT(p.change(0x0003, 0x8002) == -6 && p.change(0x8003, 0x0002) == -6);
}

static void patterns() {
  for (const Patterns& p : {kBytes, Patterns{8, 3}}) {
    for (uint32_t before = 0; before < 256; ++before) {
      for (uint32_t after = 0; after < 256; ++after) expect_change(p, before, after);
    }
  }
  EXPECT(kBytes.change(250, 4) == 10 && kBytes.change(4, 250) == -10);
  EXPECT(kBytes.change(0, 128) == -128 && kBytes.change(128, 0) == -128);
  EXPECT(kBytes.is_change(127) && kBytes.is_change(-128) && !kBytes.is_change(0));
  EXPECT(!kBytes.is_change(128) && !kBytes.is_change(-129) && !kBytes.is_change(256));
  EXPECT(kLongs.is_change(INT64_MIN) && kDoubles.is_change(INT64_MIN));
  EXPECT(!kInts.is_change(INT64_MIN) && !kInts.is_change(INT64_MAX));
  expect_order<Half>(kHalfs, 0x7c00);
  expect_order<BFloat16>(kBFloats, 0x7f80);

  std::mt19937_64 random(1);
  for (const Patterns& p : {kShorts, kInts, kLongs, kHalfs, kBFloats, kFloats, kDoubles}) {
    const uint64_t sign = p.mask() ^ p.mask() >> 1;
    std::vector<uint64_t> special = {0, 1, sign, sign | 1, sign - 1, p.mask(), p.mask() - 1};
    for (int i = 0; i < 30; ++i) special.push_back(random() & p.mask());
    for (const uint64_t before : special) {
      for (const uint64_t after : special) {
        expect_change(p, before, after);
        const uint64_t near = (before + random() % 65 - 32) & p.mask();
        expect_change(p, before, near);
      }
    }
  }
}

static void exponent_classes() {
  for (const Patterns& p : {kBytes, kShorts, kInts, kLongs}) {
    EXPECT(p.exponent_class(p.mask()) == 0 && p.exponent_class(p.mask() >> 1) == 0);
  }
  for (uint32_t e = 0; e < 256; ++e) {
    for (const uint32_t sign : {0u, 1u}) {
      EXPECT(kHalfs.exponent_class(sign << 15 | (e % 32) << 10 | 0x3ff) == e % 32);
      EXPECT(kBFloats.exponent_class(sign << 15 | e << 7 | 0x7f) == e);
      EXPECT(kFloats.exponent_class(sign << 31 | e << 23 | 0x7fffff) == e);
    }
  }
  for (uint64_t e = 0; e < 2048; ++e) {
    const uint64_t expected = std::clamp<uint64_t>(e, 896, 1151) - 896;
    EXPECT(kDoubles.exponent_class(e << 52 | 5) == expected);
    EXPECT(kDoubles.exponent_class(uint64_t{1} << 63 | e << 52) == expected);
  }
}

// ---- Integers that change alike

static void last_changes() {
  std::mt19937_64 random(5);
  const int64_t special[] = {1, -1, 2, -2, 3, -3, 7, -7, INT64_MAX, INT64_MIN, INT64_MIN + 1};
  const auto any = [&] {
    const uint64_t number = random();
    return number % 8 == 0 ? static_cast<int64_t>(random() | 1) : special[number % 11];
  };
  for (int round = 0; round < 20'000; ++round) {
    // Runs of levels, and of changes, and runs of those.
    LastChange levels = LastChange::any(), changes = levels, runs = levels;
    const int64_t before = any();
    RepeatedChange decoded{before}, encoded{before}, last{before};
    const int n_runs = static_cast<int>(random() % 4);
    for (int r = 0; r < n_runs; ++r) {
      LastChange run = LastChange::any();
      const int n = static_cast<int>(random() % 5);
      for (int i = 0; i < n; ++i) {
        const int64_t number = any();
        levels = levels.then(LastChange::after(number));
        run = run.then(LastChange::after(number));
        changes = changes.then(LastChange::is(number));
        decoded.change_of(number);
        encoded.level_of(number);
      }
      runs = runs.then(run);
      EXPECT(run.of(last.last) == decoded.last);
      last.last = decoded.last;
    }
    EXPECT(levels.of(before) == decoded.last && runs.of(before) == decoded.last);
    EXPECT(changes.of(before) == encoded.last);
  }
}

// ---- The order of exponents

struct Model {
  std::vector<Tensor> tensors;
  std::vector<std::vector<uint8_t>> memory;

  void add(uint64_t n_elems, const Patterns& p, DType dtype, std::mt19937_64& random) {
    const uint32_t elem_bytes = p.n_bits / 8;
    auto& bytes = memory.emplace_back(n_elems * elem_bytes);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() & random());
    Tensor& t = tensors.emplace_back();
    t.reference = bytes.data();
    t.n_elems = n_elems, t.elem_bytes = elem_bytes, t.dtype = dtype, t.role = Role::kLossless;
  }
};

static void exponent_order() {
  std::mt19937_64 random(2);
  Model model;
  model.add(5, kBytes, DType::kOther, random);
  model.add(70'000, kBFloats, DType::kBFloat16, random);  // two chunks
  model.add(1, kHalfs, DType::kFloat16, random);
  model.add(300, kDoubles, DType::kFloat64, random);
  model.add(60'000, kInts, DType::kOther, random);
  model.add(1200, kFloats, DType::kFloat32, random);
  const Groups groups = make_groups(model.tensors);
  const Group& group = groups.lossless;
  std::vector<uint32_t> classes;
  for (size_t i = 0; i < model.tensors.size(); ++i) {
    const Tensor& t = model.tensors[i];
    const unsigned mantissa_bits = t.dtype == DType::kOther ? 0 : mantissa_bits_of(t.dtype);
    const Patterns p{8 * t.elem_bytes, mantissa_bits};
    for (uint64_t e = 0; e < t.n_elems; ++e)
      classes.push_back(p.exponent_class(load_element(t.reference, e, t.elem_bytes)));
  }
  // Where each element is in the order.
  std::vector<uint64_t> order(classes.size()), place(classes.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](uint64_t a, uint64_t b) { return classes[a] < classes[b]; });
  for (size_t i = 0; i < order.size(); ++i) place[order[i]] = i;

  for (const uint64_t one_in : {1u, 2u, 1000u, 200'000u}) {
    ChangedElements changes;
    for (uint64_t i = 0; i < classes.size(); ++i) {
      if (random() % one_in == 0) changes.emplace_back(i, static_cast<int64_t>(i) - 70'003);
    }
    const ChangedElements ordered = in_exponent_order(group, changes);
    EXPECT(ordered.size() == changes.size());
    for (size_t i = 0; i < ordered.size(); ++i) {
      EXPECT(i == 0 || ordered[i - 1].index() < ordered[i].index());
      const uint64_t element = order[ordered[i].index()];
      EXPECT(ordered[i].level() == static_cast<int64_t>(element) - 70'003);
    }
    const ChangedElements again = in_element_order(group, ordered);
    EXPECT(again.size() == changes.size());
    for (size_t i = 0; i < again.size(); ++i) {
      EXPECT(again[i].index() == changes[i].index() && again[i].level() == changes[i].level());
    }
  }
  for (const uint64_t element : {uint64_t{0}, kChunkElems - 1, kChunkElems, order.size() - 1}) {
    EXPECT(in_exponent_order(group, {{element, 1}})[0].index() == place[element]);
    EXPECT(in_element_order(group, {{place[element], 1}})[0].index() == element);
  }
  EXPECT(in_exponent_order(group, {}).empty() && in_element_order(group, {}).empty());
  Model integers;  // they stay where they are
  integers.add(100, kInts, DType::kOther, random);
  const Groups others = make_groups(integers.tensors);
  EXPECT(in_exponent_order(others.lossless, {{99, 1}})[0].index() == 99);
  EXPECT(in_element_order(others.lossless, {{99, 1}})[0].index() == 99);
}

// ---- Byte planes

using Bytes = std::vector<uint8_t>;

// Whether a plane pays; what is coded must be decoded.
static bool is_coded(const Bytes& plane) {
  const auto slice = encode_plane(plane);
  if (!slice) return false;
  EXPECT(slice->size() < plane.size());
  Bytes decoded(plane.size());
  EXPECT(decode_plane(*slice, decoded) && decoded == plane);
  // Too short, too long, and for another number of bytes.
  for (size_t n = 0; n < slice->size(); n += 1 + n / 8) {
    EXPECT(!decode_plane(std::span(*slice).first(n), decoded));
  }
  Bytes longer = *slice;
  for (int i = 0; i < 2; ++i) {
    longer.push_back(0);
    EXPECT(!decode_plane(longer, decoded));
  }
  return true;
}

static void planes() {
  std::mt19937_64 random(3);
  for (const size_t n : {2u, 3u, 20u, 100u, 2047u, 2048u, 4095u, 4096u, 9999u, 65535u, 65536u}) {
    Bytes flat(n), steep(n), rare(n, 7), two(n), top(n, 255);
    for (size_t i = 0; i < n; ++i) {
      flat[i] = static_cast<uint8_t>(random());
      steep[i] = static_cast<uint8_t>(255 - std::countl_zero(random() | 1));
      two[i] = random() % 2 == 0 ? 0 : 255;
    }
    flat[0] = 0, flat[1] = 1;
    rare[n / 2] = 8, top[n - 1] = 0;
    EXPECT(!is_coded(flat));
    EXPECT(is_coded(steep) == (n >= 100) && is_coded(two) == (n >= 100));
    EXPECT(is_coded(rare) == (n >= 20) && is_coded(top) == (n >= 100));
  }
}

// A slice made by hand: frequencies, states, words.
static Bytes plane_slice(uint32_t first, uint32_t last, const std::vector<uint32_t>& frequencies,
                         uint32_t state, const Bytes& words = {}) {
  BitWriter out;
  out.put(first, 8);
  out.put(last, 8);
  for (const uint32_t frequency : frequencies) out.put_gamma(frequency + 1);
  Bytes slice = out.finish();
  slice.resize(slice.size() + 4);
  store_le(slice.data() + slice.size() - 4, state);
  slice.insert(slice.end(), words.begin(), words.end());
  return slice;
}

static void damaged_planes() {
  // One byte of frequency 2^11 halves the distance of a state to 2^16.
  const uint32_t start = 1u << 16;
  Bytes one(1), two(2);
  EXPECT(decode_plane(plane_slice(3, 4, {2048, 2048}, 2 * start), one) && one[0] == 3);
  EXPECT(decode_plane(plane_slice(3, 4, {2048, 2048}, 2 * start + 2048), one) && one[0] == 4);
  EXPECT(decode_plane(plane_slice(3, 4, {2048, 2048}, 4 * start), two));
  EXPECT(!decode_plane(plane_slice(3, 4, {2048, 2048}, 4 * start), one));  // does not end
  EXPECT(!decode_plane(plane_slice(3, 4, {2048, 2048}, 2 * start), two));  // no words
  EXPECT(!decode_plane(plane_slice(3, 4, {2048, 2048}, start - 1), one));
  EXPECT(!decode_plane(plane_slice(3, 4, {2048, 2048}, 0), one));
  EXPECT(!decode_plane(plane_slice(3, 4, {2048, 2048}, ~0u, {0, 0}), one));
  EXPECT(!decode_plane(plane_slice(3, 4, {2048, 2048}, 2 * start, {0, 0}), one));  // a word left
  EXPECT(!decode_plane(plane_slice(3, 4, {2047, 2048}, 2 * start), one));          // another sum
  EXPECT(!decode_plane(plane_slice(3, 4, {2049, 2048}, 2 * start), one));
  EXPECT(!decode_plane(plane_slice(3, 5, {0, 2048, 2048}, 2 * start), one));
  EXPECT(!decode_plane(plane_slice(3, 5, {2048, 2048, 0}, 2 * start), one));
  EXPECT(!decode_plane(plane_slice(3, 4, {4096, 0}, start), one));
  EXPECT(!decode_plane(plane_slice(3, 4, {0, 4096}, start), one));
  EXPECT(!decode_plane(plane_slice(3, 3, {4096}, start), one));  // one byte alone
  EXPECT(!decode_plane(plane_slice(4, 3, {}, start), one));
  EXPECT(!decode_plane(plane_slice(0, 255, std::vector<uint32_t>(256, 4096), start), one));
  EXPECT(!decode_plane(plane_slice(0, 255, std::vector<uint32_t>(255, 16), start), one));
  EXPECT(decode_plane(plane_slice(0, 255, std::vector<uint32_t>(256, 16), 256 * start), one));
  EXPECT(!decode_plane({}, one) && !decode_plane(Bytes{0}, one));
  EXPECT(!decode_plane(Bytes(300, 0xff), one));
  Bytes unclean = plane_slice(3, 4, {2048, 2048}, 2 * start);
  unclean[unclean.size() - 5] |= 0x80;  // behind the frequencies
  EXPECT(!decode_plane(unclean, one));

  // Whatever changes: an error, or other bytes.
  std::mt19937_64 random(4);
  for (int round = 0; round < 300; ++round) {
    Bytes plane(300 + random() % 5000);
    for (uint8_t& byte : plane) byte = static_cast<uint8_t>(random() % 16);
    Bytes slice = *encode_plane(plane), decoded(plane.size());
    slice[random() % slice.size()] ^= static_cast<uint8_t>(1u << random() % 8);
    EXPECT(!decode_plane(slice, decoded) || decoded != plane);
  }
}

int main() {
  patterns();
  exponent_classes();
  last_changes();
  exponent_order();
  planes();
  damaged_planes();
}

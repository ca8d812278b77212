// The arithmetic of csrc/entropy: symbols, raw bits, contexts, frequencies, interleaved rANS; and
// bit fields.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "entropy/frequencies.hpp"
#include "entropy/interleaved_rans.hpp"
#include "entropy/lane_symbols.hpp"
#include "entropy/partition.hpp"
#include "expect.hpp"
#include "format/bits.hpp"
#include "format/version.hpp"

using namespace resfed;

using Format = CurrentFormat;

static void gap_symbols() {
  // Each value lies in the class of its symbol, and classes follow each other without a hole.
  for (uint32_t s = 0; s + 1 < kGapEscape; ++s) {
    const ValueClass c = gap_class(s);
    EXPECT(gap_class(s + 1).first == c.first + (1u << c.n_bits) && c.n_bits <= kPieceBits);
  }
  for (uint64_t gap = 1; gap < 1u << kEscapedGapLog2; ++gap) {
    const uint32_t symbol = gap_symbol(gap).symbol;
    EXPECT(symbol < kGapEscape && gap >= gap_class(symbol).first);
    EXPECT(gap - gap_class(symbol).first < 1u << gap_raw_bits(symbol));
  }
  for (unsigned log2 = kEscapedGapLog2; log2 <= kMostGapLog2; ++log2) {
    EXPECT(log2 < 1u << gap_raw_bits(kGapEscape));
    for (const uint64_t gap : {1ull << log2, (2ull << log2) - 1}) {
      EXPECT(gap_symbol(gap).symbol == kGapEscape && floor_log2(gap) == log2);
    }
  }
}

// Levels that are interesting under some shift: around powers of two and classes, and any.
static std::vector<uint64_t> interesting_levels(std::mt19937_64& random) {
  std::vector<uint64_t> levels = {kMostLevel<ChangedElement>};
  for (unsigned shift = 0; shift <= kMostShift; ++shift) {
    for (uint64_t high = 1; high <= kEscapedLevel + 1; ++high) {
      for (const uint64_t level : {(high - 1) << shift, ((high - 1) << shift) + 1}) {
        if (level > 0 && level <= levels[0]) levels.push_back(level);
      }
    }
  }
  for (int i = 0; i < 2000; ++i) levels.push_back(1 + (random() >> (1 + random() % 63)));
  return levels;
}

static void level_symbols() {
  for (uint32_t s = 9; s + 1 < kLevelEscape; ++s) {
    const ValueClass c = level_class(s);
    EXPECT(level_class(s + 1).first == c.first + (1u << c.n_bits));
  }
  EXPECT(level_symbol(8, 0) == 7 && level_symbol(9, 0) == 8);
  EXPECT(level_symbol(8 << 5, 5) == 7 && level_symbol((8 << 5) + 1, 5) == 8);
  EXPECT(level_symbol(95, 0) == 14 && level_symbol(96, 0) == kLevelEscape);
  EXPECT(level_symbol(95 << 5, 5) == 14 && level_symbol((95 << 5) + 1, 5) == kLevelEscape);
  EXPECT(floor_log2(kEscapedLevel) == kEscapedLevelLog2);
  EXPECT(floor_log2(kMostLevel<ChangedElement>) < 1u << kExponentBits);

  std::mt19937_64 random(7);
  const std::vector<uint64_t> levels = interesting_levels(random);
  for (unsigned shift = 0; shift <= kMostShift; ++shift) {
    for (const uint64_t level : levels) {
      const uint32_t symbol = level_symbol(level, shift);
      // What a decoder reads: the first piece or the exponent, then the rest.
      const RestOfLevel rest = rest_of_level(level, symbol, shift);
      uint64_t value = 1;
      if (symbol == kLevelEscape) {
        EXPECT((level - 1) >> shift >= kEscapedLevel - 1 && rest.n_bits == floor_log2(level));
      } else {
        const unsigned n_bits = level_raw_bits(symbol, shift);
        EXPECT(level >= first_level(symbol, shift));
        EXPECT((level - first_level(symbol, shift)) >> n_bits == 0);
        EXPECT(n_bits == level_class(symbol).n_bits + shift);
        EXPECT(rest.n_bits == (n_bits > kPieceBits ? n_bits - kPieceBits : 0));
        value = (level - first_level(symbol, shift)) >> rest.n_bits;
        EXPECT(value < 1u << std::min(n_bits, kPieceBits));
      }
      std::vector<std::pair<uint32_t, unsigned>> pieces;
      for_each_piece_backwards(rest.bits, rest.n_bits, [&](uint32_t piece, unsigned n) {
        EXPECT(piece >> n == 0);
        pieces.emplace_back(piece, n);
      });
      EXPECT(pieces.size() == (rest.n_bits + kPieceBits - 1) / kPieceBits && pieces.size() <= 4);
      for (size_t i = pieces.size(); i-- > 0;) {
        EXPECT(pieces[i].second == kPieceBits || i == 0);  // the shorter one is read last
        value = value << pieces[i].second | pieces[i].first;
      }
      EXPECT(value + (symbol == kLevelEscape ? 0 : first_level(symbol, shift)) == level);
    }
  }
}

// A lane's codes say how each nonzero is coded.
static void codes() {
  std::mt19937_64 random(8);
  for (const unsigned shift : {0u, 1u, 13u, 20u, kMostShift}) {
    std::vector<ChangedElement> changes;
    uint64_t index = 0;
    for (int i = 0; i < 3000; ++i) {
      index += 1 + (random() >> (24 + random() % 40));
      const auto level = static_cast<int64_t>(random()) >> random() % 64;
      changes.emplace_back(index, i == 5 ? INT64_MIN : level == 0 ? 1 : level);
    }
    bool positive = true;
    const auto visit = [&](uint64_t i, const NonzeroCode& code) {
      const uint64_t gap = gap_at(changes.data(), i), level = magnitude(changes[i].level());
      const uint32_t gap_code = code.gap % kSymbols, level_code = code.level % kSymbols;
      const uint32_t symbol = level_code % kSignChanged;
      EXPECT(gap_code == gap_symbol(gap).symbol && symbol == level_symbol(level, shift));
      EXPECT(code.raw_gap ==
             (gap_code == kGapEscape ? floor_log2(gap) : gap - gap_class(gap_code).first));
      const bool is_positive = changes[i].level() > 0;
      EXPECT((level_code >= kSignChanged) == (positive != is_positive));
      positive = is_positive;
      const RestOfLevel rest = rest_of_level(level, symbol, shift);
      const unsigned n_bits = level_raw_bits(symbol, shift);
      EXPECT(code.raw_level == (symbol == kLevelEscape
                                    ? floor_log2(level)
                                    : (level - first_level(symbol, shift)) >> rest.n_bits));
      EXPECT(((code.occurs & kGapEscapes) != 0) == (gap_code == kGapEscape));
      EXPECT(((code.occurs & kRawLevels) != 0) == (n_bits > 0));
      EXPECT(((code.occurs & kLongLevels) != 0) == (rest.n_bits > 0));
    };
    for_each_code<false>(changes.data(), 0, changes.size(), {0, 0}, shift, visit);
  }
}

static void shifts() {
  const auto shift_of = [](const std::vector<int64_t>& levels) {
    std::vector<ChangedElement> changes;
    for (const int64_t level : levels) changes.emplace_back(changes.size(), level);
    return choose_shift(changes.data(), changes.size());
  };
  EXPECT(shift_of({1}) == 0 && shift_of({-15}) == 0 && shift_of({16}) == 1);
  EXPECT(shift_of({1, 1, 1 << 11}) == 0);      // (0 + 0 + 11) / 3 = 3
  EXPECT(shift_of({1, -1, -(1 << 12)}) == 1);  // 4
  EXPECT(shift_of({INT64_MAX}) == kMostShift && shift_of({INT64_MIN, INT64_MIN}) == kMostShift);
  const std::vector<SentSymbol> sent = {{1, 1 << 23}, {2, -(1 << 23)}, {9, (1 << 23) - 1}};
  EXPECT(choose_shift(sent.data(), 2) == 20 && choose_shift(sent.data(), 3) == 19);
}

// The encoder's step, with a word if one is due, and the decoder's that undoes it.
static void lane_states() {
  for (uint32_t freq = 1; freq <= kFrequencyOne - (kSymbols - 1); ++freq) {
    const Slots first{0, static_cast<uint16_t>(freq)};
    const Slots last{static_cast<uint16_t>(kFrequencyOne - freq), static_cast<uint16_t>(freq)};
    const uint32_t limit = lane_limit(freq);
    std::vector<uint32_t> states = {kLaneStart, kLaneStart + freq, limit - freq, limit - 1};
    for (uint32_t state : {kLaneStart, 0x7fffffffu, ~0u}) {
      if (state >= limit) state >>= 16;
      states.push_back(state);
    }
    for (const uint32_t state : states) {
      if (state >= limit) continue;
      EXPECT(lane_quotient(state, freq) == state / freq);
      for (const Slots slots : {first, last}) {
        const uint32_t coded = with_symbol(state, slots);
        const uint32_t slot = coded % kFrequencyOne;
        EXPECT(slot >= slots.start && slot < slots.start + slots.freq);
        EXPECT(without_symbol(coded, slots) == state);
        EXPECT(state < kLaneStart || coded >= kLaneStart);
      }
    }
  }
}

static void logarithms() {
  for (uint64_t value = 1; value < uint64_t{1} << 62; value += 1 + value / 999) {
    const long double exact = 32 * std::log2(static_cast<long double>(value));
    const long double off = static_cast<long double>(log2_in_32nds(value)) - exact;
    EXPECT(off > -0.51L && off < 0.51L);
  }
  for (unsigned log2 = 0; log2 < 64; ++log2)
    EXPECT(log2_in_32nds(uint64_t{1} << log2) == 32 * log2);
  for (uint32_t f = 1; f <= kFrequencyOne; ++f) {
    EXPECT(kCodeLengths.of[f] == 32 * kFrequencyBits - log2_in_32nds(f));
    EXPECT(kCodeLengths.of[f] <= (f == 1 ? 384 : kCodeLengths.of[f - 1]));
  }
}

static void expect_normal(const uint64_t (&weights)[kSymbols]) {
  const Frequencies frequencies = normalized(weights);
  uint32_t sum = 0;
  for (const uint16_t f : frequencies.of) {
    EXPECT(f >= 1);
    sum += f;
  }
  EXPECT(sum == kFrequencyOne);
}

static void frequencies() {
  constexpr uint64_t kMost = (uint64_t{1} << 46) - 1;
  std::mt19937_64 random(2);
  for (uint32_t s = 0; s < kSymbols; ++s) {
    uint64_t one[kSymbols] = {}, others[kSymbols];
    one[s] = 1;
    expect_normal(one);
    one[s] = kMost;
    expect_normal(one);
    std::fill(others, others + kSymbols, kMost);
    expect_normal(others);
    others[s] = 0;
    expect_normal(others);
    std::fill(others, others + kSymbols, 1);
    others[s] = kMost;
    expect_normal(others);
  }
  for (int i = 0; i < 20'000; ++i) {
    uint64_t weights[kSymbols];
    for (uint64_t& weight : weights) weight = random() >> (18 + random() % 46);
    weights[random() % kSymbols] |= 1;
    expect_normal(weights);
  }
  for (int ratio = -kMostHalfOctaves; ratio <= kMostHalfOctaves; ++ratio) {
    for (const uint32_t weight : {1u, 1000u, kFrequencyOne}) {
      const double exact = weight * std::exp2(ratio / 2.0 + 23);
      const auto scaled = static_cast<double>(scaled_weight(weight, ratio));
      EXPECT(std::abs(scaled / exact - 1) < 1e-5 && scaled_weight(weight, ratio) <= kMost);
    }
  }
  const Frequencies flat = trained_row("00000000000000000000000000000000");
  for (const uint16_t f : flat.of) EXPECT(f == kFrequencyOne / kSymbols);
  const Frequencies steep = trained_row("l0000000000000000000000000000000");
  EXPECT(steep.of[0] == kFrequencyOne - 31 && steep.of[31] == 1);
}

template <bool kBlocks>
static void expect_rows(Block block) {
  std::mt19937_64 random(block.size + 64 * block.position);
  LaneContexts<kBlocks> c;
  c.block = block;
  const bool blocks = block.size > 0;
  uint64_t at = 0;
  for (int i = 0; i < 3000; ++i) {
    EXPECT(c.gap_row() < kRows[gap_family(Part::kLossy, blocks)]);
    const uint64_t gap = 1 + (random() >> (i % 7 == 0 ? 2 + random() % 62 : 62));
    const uint64_t before = at;
    at += i == 0 ? block.position : gap;
    const uint64_t seen = i == 0 ? uint64_t{1} << 40 : gap;  // a lane's first gap says nothing
    c.add_gap(seen, floor_log2(seen));
    if (blocks) {
      const uint64_t size = block.size;
      EXPECT(c.left == size - (at + 1) % size);
      EXPECT(c.crossed == (i > 0 && at / size != before / size));
      EXPECT(!c.whole || gap == 1 || at % size == 0 || i == 0);
      at %= size;
    }
    EXPECT(c.level_row() < kRows[level_family(Part::kLossy, blocks)]);
    c.add_level(random() % kSymbols);
    EXPECT(c.activity <= 16 * 15 && c.level <= 16 * 63 && c.changes <= 256);
  }
}

// Averages of changes are of about 32 of them, of fewer at first.
static void contexts_of_changes() {
  std::mt19937_64 random(9);
  for (const unsigned most : {0u, 3u, 15u, 62u}) {
    ChangeContexts c;
    for (int i = 0; i < 3000; ++i) {
      EXPECT(c.gap_row() < kRows[gap_family(Part::kLossless, false)]);
      const uint64_t gap = (1 + (random() & 1)) << random() % (most + 1);
      c.add_gap(gap, floor_log2(gap));
      EXPECT(c.activity >= 0 && c.activity <= 512 * 15);
      EXPECT(c.level_row() < kRows[level_family(Part::kLossless, false)]);
      c.add_level(random() % kSymbols);
      EXPECT(c.level >= 512 && c.level <= 512 * 63);
    }
  }
  for (const uint32_t log2 : {0u, 1u, 7u, 15u, 40u}) {
    ChangeContexts c;
    for (int i = 0; i < 300; ++i) c.add_gap(uint64_t{1} << log2, log2), c.add_level(7);
    const auto expected = static_cast<int32_t>(512 * std::min(log2, 15u));
    EXPECT(c.activity <= expected && c.activity + 32 > expected);
    EXPECT(c.level <= 512 * 8 && c.level + 32 > 512 * 8);
    for (int i = 0; i < 300; ++i) c.add_gap(1, 0);
    EXPECT(c.activity == 0 && c.gap_row() == 0);
  }
}

static void lane_contexts() {
  contexts_of_changes();
  expect_rows<false>({0, 0});
  expect_rows<true>({0, 0});
  for (const Block block : {Block{2, 0}, Block{2, 1}, Block{9, 4}, Block{63, 62}, Block{64, 63}}) {
    expect_rows<true>(block);
  }
  for (uint32_t size = 1; size <= kMaxBlock; ++size) {
    for (uint32_t position = 0; position < size; ++position) {
      uint32_t left = left_in_block(Block{size, position});
      uint64_t at = position + 1;
      for (const uint64_t gap : {uint64_t{1}, uint64_t{63}, uint64_t{1} << 40}) {
        EXPECT(left == size - at % size);
        left = left_in_block(left, gap, size);
        at += gap;
      }
    }
  }
  for (uint32_t number = 0; number < 256; ++number) {
    const uint32_t expected = (number >= 8) + (number >= 24) + (number >= 56);
    EXPECT((number_class<8, 24, 56>(number)) == expected);
  }
}

static void partitions() {
  for (unsigned log2 = Format::kMinLaneLog2; log2 <= Format::kMaxLaneLog2; ++log2) {
    EXPECT(partition(0, log2).n_parts == 0);
    for (uint64_t n = 1; n < uint64_t{1} << 39; n = 2 * n + n / 3 + 1) {
      const Partition p = partition(n, log2);
      const uint64_t nominal = uint64_t{1} << log2;
      EXPECT(p.n_parts == std::max<uint64_t>((n + nominal / 2) / nominal, 1));
      EXPECT(part_begin(p, 0) == 0 && part_begin(p, p.n_parts) == n);
      uint64_t last = part_begin(p, 1);
      for (uint64_t s = 1; s < std::min<uint64_t>(p.n_parts, 100); ++s) {
        const uint64_t size = part_begin(p, s + 1) - part_begin(p, s);
        EXPECT(size <= last && size + 1 >= last);
        last = size;
      }
    }
  }
}

static void nonzeros() {
  const auto max_level = static_cast<int32_t>(kMaxLevel);
  for (const int32_t level : {1, -1, 8, max_level, -max_level}) {
    SentSymbol symbol(5, level);
    EXPECT(symbol.index() == 5 && symbol.level() == level);
    EXPECT(magnitude(level) == static_cast<uint32_t>(std::abs(level)));
    symbol.move_up(kMaxLossyElements - 6);
    EXPECT(symbol.index() == kMaxLossyElements - 1 && symbol.level() == level);
  }
  for (const int64_t level : {int64_t{1}, int64_t{-1}, INT64_MAX, INT64_MIN}) {
    ChangedElement changed(5, level);
    changed.move_up(uint64_t{1} << 60);
    EXPECT(changed.index() == (uint64_t{1} << 60) + 5 && changed.level() == level);
  }
  EXPECT(magnitude(INT64_MIN) == kMostLevel<ChangedElement>);
  EXPECT(magnitude(INT64_MAX) == kMostLevel<ChangedElement> - 1);
  EXPECT(kMostLevel<SentSymbol> == kMaxLevel);
}

// ---- Bit fields

static bool refuses(const std::vector<uint8_t>& bytes, unsigned skipped, unsigned n_bits) {
  BitReader in(bytes.data(), bytes.size());
  try {
    for (unsigned i = 0; i < skipped; ++i) in.get(1);
    n_bits == 0 ? in.finish() : static_cast<void>(in.get(n_bits));
  } catch (const Failure& failure) {
    return failure.code == Code::kBadTables;
  }
  return false;
}

static void bits() {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::pair<uint32_t, unsigned>> fields;  // n_bits 0: Elias gamma
    BitWriter out;
    const int n = static_cast<int>(random() % 40);
    for (int i = 0; i < n; ++i) {
      const auto n_bits = static_cast<unsigned>(random() % 33);
      const uint32_t value = n_bits == 0 ? 1 + random() % 14 : random() >> (32 - n_bits);
      fields.emplace_back(value, n_bits);
      n_bits == 0 ? out.put_gamma(value) : out.put(value, n_bits);
    }
    const std::vector<uint8_t> bytes = out.finish();
    BitReader in(bytes.data(), bytes.size());
    for (const auto& [value, n_bits] : fields) {
      EXPECT((n_bits == 0 ? in.get_gamma(14) : in.get(n_bits)) == value);
    }
    in.finish();
  }
  EXPECT((BitWriter().finish().empty()));
  EXPECT(refuses({}, 0, 1) && refuses({1, 2}, 16, 1) && refuses({1, 2}, 0, 17));
  EXPECT(!refuses({1, 2}, 0, 16) && !refuses({1, 2, 3, 4}, 0, 32));
  EXPECT(refuses({0}, 0, 0) && refuses({0, 0}, 8, 0));  // a byte too many
  EXPECT(refuses({2}, 1, 0) && refuses({0x80}, 7, 0));  // not zeros
  EXPECT(!refuses({1}, 1, 0) && !refuses({0x7f}, 7, 0) && !refuses({9}, 8, 0));
  const std::vector<uint8_t> three = {0x81, 0x02, 0x7f};
  BitReader aligned(three.data(), three.size());
  EXPECT(aligned.align() == 0 && aligned.get(8) == 0x81 && aligned.align() == 1);
  EXPECT(aligned.get(2) == 2 && aligned.align() == 2);
  aligned.get(7);
  EXPECT(aligned.align() == 3);
  for (uint32_t value = 1; value < 70; ++value) {
    BitWriter out;
    out.put_gamma(value);
    const std::vector<uint8_t> bytes = out.finish();
    for (uint32_t limit = 1; limit < 70; ++limit) {
      BitReader in(bytes.data(), bytes.size());
      bool refused = false;
      try {
        EXPECT(in.get_gamma(limit) == value);
      } catch (const Failure&) {
        refused = true;
      }
      EXPECT(refused == (value > limit));
    }
  }
  const std::vector<uint8_t> endless(100, 0xff);
  BitReader in(endless.data(), endless.size());
  bool refused = false;
  try {
    in.get_gamma(14);
  } catch (const Failure&) {
    refused = true;
  }
  EXPECT(refused);
}

int main() {
  gap_symbols();
  level_symbols();
  codes();
  shifts();
  lane_states();
  logarithms();
  frequencies();
  lane_contexts();
  partitions();
  nonzeros();
  bits();
}

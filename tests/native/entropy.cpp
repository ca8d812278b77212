// The arithmetic of csrc/entropy: probabilities, rANS, symbols, contexts, frequencies, slices; and
// bit fields.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "entropy/changes.hpp"
#include "entropy/frequencies.hpp"
#include "entropy/interleaved_rans.hpp"
#include "entropy/lane.hpp"
#include "entropy/sent_symbol.hpp"
#include "entropy/slice.hpp"
#include "expect.hpp"
#include "format/bits.hpp"
#include "format/version.hpp"

using namespace resfed;

using Format = CurrentFormat;
using Contexts = Format::Contexts;

static bool equal(const Probability& a, const Probability& b) {
  return a.fast == b.fast && a.slow == b.slow && a.warmup == b.warmup;
}

static void probabilities() {
  for (uint32_t i = 0; i < Contexts::kLossless; ++i) {
    EXPECT(stays_uncertain(Format::initial_lossless_state(i)));
  }
  EXPECT(rates_at(kWarmedUp).fast == 65536 / 16 && rates_at(kWarmedUp).slow == 65536 / 128);
  EXPECT(rates_at(kWarmedUp + kMaxCount).slow == 131072 / 3);  // count 0
  std::mt19937 random(1);
  for (uint8_t count = 0; count <= kMaxCount; ++count) {
    const auto first = static_cast<uint8_t>(1 + random() % 255);
    Probability p = initial_probability({first, count});
    EXPECT(prob_of_one(p) == first * (kProbOne / 256));
    for (int i = 0; i < 300; ++i) {  // as vectors and as numbers
      const bool bit = random() % 3 == 0;
      const Probability next = moved_towards(target_of(bit), p, rates_at(p.warmup));
      EXPECT(bit ? prob_of_one(next) >= prob_of_one(p) : prob_of_one(next) <= prob_of_one(p));
      update(p, bit);
      EXPECT(equal(p, next));
    }
    EXPECT(p.warmup == kWarmedUp);
  }
}

static void intervals() {
  for (uint32_t p = 1; p < kProbOne; ++p) {
    const Slots one = slots_of_bit(true, p), zero = slots_of_bit(false, p);
    EXPECT(one.start == 0 && one.freq == zero.start && zero.start + zero.freq == kProbOne);
    for (const bool bit : {false, true}) {
      const Slots slots = slots_of_bit(bit, p);
      // The encoder's step, and the decoder's that undoes it.
      for (const uint32_t state : {kRansLow, kRansLow + p, rans_limit(slots.freq) - 1}) {
        if (state < kRansLow || state >= rans_limit(slots.freq)) continue;
        uint16_t word;
        uint32_t coded = state;
        EXPECT(!rans_put(coded, slots, &word));
        EXPECT(rans_take(coded, p) == bit && coded == state);
      }
    }
  }
  for (unsigned n_bits = 1; n_bits <= kMaxRawBits; ++n_bits) {
    for (uint32_t number = 0; number < 1u << n_bits; ++number) {
      const Slots slots = slots_of_bypass(number, n_bits);
      uint16_t word;
      uint32_t state = kRansLow + number;
      const uint32_t before = state;
      if (rans_put(state, slots, &word)) continue;
      EXPECT(rans_take_bypass(state, n_bits) == number && state == before);
    }
  }
}

static void context_families() {
  EXPECT(Contexts::ChangeGap::kBegin == 0);
  EXPECT(Contexts::ChangeGap::kEnd == Contexts::ChangeGap::at(1u, 15u) + 1);
  EXPECT(Contexts::ChangeSize::kBegin == Contexts::ChangeRepeat::kEnd);
  EXPECT(Contexts::kLossless == Contexts::ChangeSize::at(63u) + 1);
  EXPECT(Contexts::ChangeGap::clamp<1>(3) == 3 && Contexts::ChangeGap::clamp<1>(62) == 15);
}

// ---- Lanes

static void symbols() {
  // Each value lies in the class of its symbol, and classes follow each other without a hole.
  for (uint32_t s = 0; s + 1 < kGapEscape; ++s) {
    const ValueClass c = gap_class(s);
    EXPECT(gap_class(s + 1).first == c.first + (1u << c.n_bits) && c.n_bits <= kPieceBits);
  }
  for (uint32_t s = 9; s + 1 < kLevelEscape; ++s) {
    const ValueClass c = level_class(s);
    EXPECT(level_class(s + 1).first == c.first + (1u << c.n_bits));
  }
  const auto lies_in = [](uint64_t value, ValueClass c) {
    return value >= c.first && value - c.first < 1u << c.n_bits;
  };
  for (uint64_t gap = 1; gap < 1u << kEscapedGapLog2; ++gap) {
    EXPECT(gap_symbol(gap) < kGapEscape && lies_in(gap, gap_class(gap_symbol(gap))));
  }
  for (unsigned log2 = kEscapedGapLog2; log2 <= kMostGapLog2; ++log2) {
    EXPECT(log2 < 1u << kGapExponentBits);
    for (const uint64_t gap : {1ull << log2, (2ull << log2) - 1}) {
      EXPECT(gap_symbol(gap) == kGapEscape && floor_log2(gap) == log2);
    }
  }
  for (uint32_t level = 1; level <= kMaxLevel; ++level) {
    const uint32_t symbol = level_symbol(level);
    EXPECT((symbol == kLevelEscape) == (level >= kEscapedLevel));
    if (symbol != kLevelEscape) EXPECT(lies_in(level, level_class(symbol)));
  }
  EXPECT(level_symbol(8) == 7 && level_symbol(9) == 8);
  EXPECT(floor_log2(kEscapedLevel) == kEscapedLevelLog2 && floor_log2(kMaxLevel) == kMostLevelLog2);
  EXPECT(kMostLevelLog2 < 1u << kLevelExponentBits);
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
    EXPECT(c.gap_row() < kRows[gap_family(blocks)]);
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
    EXPECT(c.level_row() < kRows[level_family(blocks)]);
    c.add_level(random() % kSymbols);
    EXPECT(c.activity <= 16 * 15 && c.level <= 16 * 63 && c.changes <= 256);
  }
}

static void lane_contexts() {
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

static void sent_symbols() {
  const auto max_level = static_cast<int32_t>(kMaxLevel);
  for (const int32_t level : {1, -1, 8, max_level, -max_level}) {
    SentSymbol symbol(5, level);
    EXPECT(symbol.index() == 5 && symbol.level() == level);
    symbol.move_up(kMaxLossyElements - 6);
    EXPECT(symbol.index() == kMaxLossyElements - 1 && symbol.level() == level);
  }
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

// ---- Slices of changes

struct Recorded {
  std::vector<Decision> decisions;
  void put(Decision d) { decisions.push_back(d); }
};

struct ContextTable {
  Probability of[Contexts::kLossless];
  ContextTable() {
    for (uint32_t i = 0; i < Contexts::kLossless; ++i) {
      of[i] = initial_probability(Format::initial_lossless_state(i));
    }
  }
};

static std::vector<uint8_t> encoded(const std::vector<Change>& changes) {
  ContextTable table;
  Recorded sink;
  RecordingCoder<Recorded> coder{table.of, sink};
  LosslessHistory history;
  for (Change change : changes) EXPECT(code_change<Format>(coder, history, change));
  std::vector<uint8_t> bytes(2 * sink.decisions.size() + kSliceStateBytes);
  SliceWriter writer{sink.decisions.data(), sink.decisions.size(), bytes.data() + bytes.size()};
  return {writer.finish(), bytes.data() + bytes.size()};
}

// Whether these bytes are a slice of n changes, and which.
static bool decoded(const std::vector<uint8_t>& bytes, size_t n, std::vector<Change>* changes) {
  ContextTable table;
  DecodingCoder coder;
  if (!open_slice(bytes.data(), bytes.size(), table.of, &coder)) return false;
  LosslessHistory history;
  changes->assign(n, {});
  for (Change& change : *changes) {
    if (!code_change<Format>(coder, history, change) || coder.underrun) return false;
  }
  return coder.finished();
}

static void slices() {
  std::mt19937_64 random(4);
  for (const unsigned spread : {1u, 9u, 1000u}) {
    for (const unsigned n : {1u, 2u, 1500u}) {
      std::vector<Change> changes, again;
      for (unsigned i = 0; i < n; ++i) {
        const uint64_t change = random() % 3 == 0 ? 7 : 1 + (random() >> (random() % 64)) / 2;
        changes.push_back({1 + random() % spread, change});
      }
      changes.back() = {uint64_t{1} << 62, ~uint64_t{0}};
      const std::vector<uint8_t> bytes = encoded(changes);
      EXPECT(decoded(bytes, n, &again));
      for (unsigned i = 0; i < n; ++i) {
        EXPECT(again[i].gap == changes[i].gap && again[i].change == changes[i].change);
      }
      for (size_t length = 0; length < bytes.size(); length += 1 + length / 2) {
        EXPECT(!decoded({bytes.begin(), bytes.begin() + static_cast<long>(length)}, n, &again));
      }
    }
  }
}

int main() {
  probabilities();
  intervals();
  context_families();
  symbols();
  lane_states();
  logarithms();
  frequencies();
  lane_contexts();
  partitions();
  sent_symbols();
  bits();
  slices();
}

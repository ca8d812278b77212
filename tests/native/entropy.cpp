// The arithmetic of csrc/entropy: probabilities, rANS, contexts, slices.
#include <algorithm>
#include <random>
#include <vector>

#include "entropy/slice.hpp"
#include "entropy/symbols.hpp"
#include "expect.hpp"
#include "format/version.hpp"

using namespace resfed;

using Format = CurrentFormat;
using Contexts = Format::Contexts;

static bool equal(const Probability& a, const Probability& b) {
  return a.fast == b.fast && a.slow == b.slow && a.warmup == b.warmup;
}

static void probabilities() {
  for (uint32_t i = 0; i < Contexts::kSlice; ++i) {
    EXPECT(stays_uncertain(Format::initial_slice_state(i)));
  }
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
      const Slots slots = slots_of_bit(bit, p), masked = slots_by_mask(mask_of(bit), p);
      EXPECT(slots.start == masked.start && slots.freq == masked.freq);
      // The encoder's step, and either of the decoder's that undoes it.
      for (const uint32_t state : {kRansLow, kRansLow + p, rans_limit(slots.freq) - 1}) {
        if (state < kRansLow || state >= rans_limit(slots.freq)) continue;
        uint16_t word;
        uint32_t coded = state;
        EXPECT(!rans_put(coded, slots, &word));
        uint32_t branched = coded, masked_state = coded;
        EXPECT(rans_take(branched, p) == bit && branched == state);
        EXPECT((rans_take_branchless(masked_state, p) != 0) == bit && masked_state == state);
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

template <class Family>
static void expect_family(uint32_t begin, uint32_t last) {
  EXPECT(Family::kBegin == begin && Family::kEnd == last + 1);
}

static void contexts() {
  expect_family<Contexts::Gap>(0, Contexts::Gap::at(2u, 3u, 15u));
  expect_family<Contexts::GapSecond>(Contexts::GapFirst::kEnd, Contexts::GapSecond::at(22u, 1u));
  expect_family<Contexts::Period>(Contexts::LevelAbove::kEnd, Contexts::Period::at());
  EXPECT(Contexts::Level::at(1u, 2u, 3u) == Contexts::Level::kBegin + (1 * 3 + 2) * 14 + 3);
  EXPECT(Contexts::Gap::clamp<0>(1) == 1 && Contexts::Gap::clamp<0>(9) == 2);

  History h;
  for (int i = 0; i < 200; ++i) h.update(62, 1, 5);
  EXPECT(h.gap_class == 62 && h.sign == 2 && h.level == 5 && h.activity <= 240);
  for (uint32_t activity = 0; activity <= 240; ++activity) {
    h.activity = activity;
    const uint32_t expected = (activity >= 8) + (activity >= 24) + (activity >= 56);
    EXPECT(h.activity_class() == expected);
  }
  for (uint32_t size = 1; size <= 64; ++size) {
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
}

static void partitions() {
  for (unsigned log2 = Format::kMinSliceLog2; log2 <= Format::kMaxSliceLog2; ++log2) {
    EXPECT(partition(0, log2).n_slices == 0);
    for (uint64_t n = 1; n < uint64_t{1} << 39; n = 2 * n + n / 3 + 1) {
      const Partition p = partition(n, log2);
      const uint64_t nominal = uint64_t{1} << log2;
      EXPECT(p.n_slices == std::max<uint64_t>((n + nominal / 2) / nominal, 1));
      EXPECT(slice_begin(p, 0) == 0 && slice_begin(p, p.n_slices) == n);
      uint64_t last = slice_begin(p, 1);
      for (uint64_t s = 1; s < std::min<uint64_t>(p.n_slices, 100); ++s) {
        const uint64_t size = slice_begin(p, s + 1) - slice_begin(p, s);
        EXPECT(size <= last && size + 1 >= last);
        last = size;
      }
    }
  }
}

struct Recorded {
  std::vector<Decision> decisions;
  void put(Decision d) { decisions.push_back(d); }
};

struct SliceTable {
  Probability of[Contexts::kSlice];
  SliceTable() {
    for (uint32_t i = 0; i < Contexts::kSlice; ++i) {
      of[i] = initial_probability(Format::initial_slice_state(i));
    }
  }
};

static std::vector<uint8_t> encoded(const std::vector<SentSymbol>& symbols, SlicePattern pattern) {
  SliceTable table;
  Recorded sink;
  RecordingCoder<Recorded> coder{table.of, sink};
  with_nonzero_code<Format>(coder, symbols.data(), pattern, [&](auto code) {
    uint64_t covered = 0;
    for (const SentSymbol& symbol : symbols) {
      const size_t before = sink.decisions.size();
      code.encode(coder, symbol.index() + 1 - covered, symbol);
      EXPECT(sink.decisions.size() - before < Format::kMaxDecisionsPerSymbol - 10);
      covered = symbol.index() + 1;
    }
  });
  std::vector<uint8_t> bytes(2 * sink.decisions.size() + kSliceStateBytes);
  SliceWriter writer{sink.decisions.data(), sink.decisions.size(), bytes.data() + bytes.size()};
  return {writer.finish(), bytes.data() + bytes.size()};
}

// Whether these bytes are a slice of n symbols, and which.
static bool decoded(const std::vector<uint8_t>& bytes, size_t n, std::vector<SentSymbol>* symbols) {
  SliceTable table;
  DecodingCoder coder;
  if (!open_slice(bytes.data(), bytes.size(), table.of, &coder)) return false;
  symbols->resize(n);
  bool sound = true;
  with_nonzero_code<Format>(coder, symbols->data(), {}, [&](auto code) {
    uint64_t covered = 0;
    for (size_t i = 0; sound && i < n; ++i) {
      SentSymbol& symbol = (*symbols)[i];
      sound = code.decode(coder, covered, kMaxLossyElements, &symbol) && !coder.underrun;
      covered = symbol.index() + 1;
    }
  });
  return sound && coder.finished();
}

static void expect_round_trip(const std::vector<SentSymbol>& symbols, SlicePattern pattern) {
  const std::vector<uint8_t> bytes = encoded(symbols, pattern);
  std::vector<SentSymbol> again;
  EXPECT(decoded(bytes, symbols.size(), &again));
  for (size_t i = 0; i < symbols.size(); ++i) {
    EXPECT(again[i].index() == symbols[i].index() && again[i].level() == symbols[i].level());
  }
  for (size_t n = 0; n < bytes.size(); n += 1 + n / 2) {
    const std::vector<uint8_t> truncated(bytes.begin(), bytes.begin() + static_cast<long>(n));
    EXPECT(!decoded(truncated, symbols.size(), &again));
  }
}

static void slices() {
  std::mt19937 random(4);
  const auto max_level = static_cast<int32_t>(Format::kMaxLevel);
  for (const SlicePattern pattern :
       {SlicePattern{}, SlicePattern{9, {0, 0}}, SlicePattern{(uint64_t{1} << 32) - 1, {0, 0}},
        SlicePattern{0, {9, 4}}, SlicePattern{0, {64, 63}}}) {
    for (const unsigned spread : {1u, 9u, 300u}) {
      std::vector<SentSymbol> symbols;
      uint64_t index = 0;
      for (int i = 0; i < 1500; ++i) {
        index += 1 + random() % spread;
        const auto level = static_cast<int32_t>(1 + random() % (i % 50 == 0 ? 5000 : 3));
        symbols.emplace_back(index, random() % 3 == 0 ? -level : level);
      }
      expect_round_trip(symbols, pattern);
    }
    expect_round_trip({SentSymbol(0, 1)}, pattern);
    expect_round_trip({SentSymbol(kMaxLossyElements - 1, -max_level)}, pattern);
    expect_round_trip({SentSymbol(0, max_level), SentSymbol(kMaxLossyElements - 1, -max_level)},
                      pattern);
  }
  SentSymbol symbol(5, -max_level);
  symbol.move_up(kMaxLossyElements - 6);
  EXPECT(symbol.index() == kMaxLossyElements - 1 && symbol.level() == -max_level);
}

static void patterns() {
  // Rows of 10 whose signs repeat; blocks of 4, sent as a whole.
  std::vector<SentSymbol> rows, blocks;
  for (uint64_t row = 0; row < 40; ++row) {
    for (const uint64_t column : {1, 2, 5, 8}) {
      rows.emplace_back(10 * row + column, column % 2 == 0 ? 1 : -1);
    }
    for (uint64_t i = 0; i < 4; ++i) blocks.emplace_back(4 * (3 * row + row % 2) + i, 1);
  }
  const RowLength in_rows{0, 10, 0}, in_blocks{0, 0, 4};
  const auto choose = [](const std::vector<SentSymbol>& s, const RowLength& r) {
    return choose_pattern<Format>(s.data(), s.data() + s.size(), &r, 1);
  };
  EXPECT(choose(rows, in_rows).period == 10);
  EXPECT(choose(blocks, in_blocks).block.size == 4 &&
         choose(blocks, in_blocks).block.position == 0);
  EXPECT(choose(rows, in_blocks).block.size == 0 && choose(blocks, {0, 0, 0}).period == 0);
  EXPECT(encoded(rows, choose(rows, in_rows)).size() < encoded(rows, {}).size());
  EXPECT(encoded(blocks, choose(blocks, in_blocks)).size() < encoded(blocks, {}).size());
}

int main() {
  probabilities();
  intervals();
  contexts();
  partitions();
  slices();
  patterns();
}

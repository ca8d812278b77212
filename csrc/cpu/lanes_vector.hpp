// Lanes coded together, some to a vector: the logic once, for any instruction set.
//
// An Isa has vectors of kWidth numbers of 32 bits, and masks of kWidth bits in whatever form:
//   Vector all(number), load(from), store(to, v); Mask first(n), nonzero(v), eq(a, b), ge(a, b);
//   Mask both(m, n), either(m, n), without(m, n); uint32_t bits(m); Vector ones(m)
//   Vector add, sub, mul, min, band, bor, bxor(a, b), left<n>(v), right<n>(v), left(v, n), right(v,
//   n) Vector select(m, a, b), masked(m, v): b or 0 where m has no bit Vector quotient(a, b) of
//   numbers below 2^16, anything where b is 0 Vector near_quotient(a, b) of numbers below 2^32 and
//   2^12, that is below 2^20: off by one at most Table32(function), table[v]: 32 numbers, by index;
//   Table64: 64 numbers below 2^8 Vector expanded(m, words)  the next words, one for each bit
//   uint16_t* pushed(m, v, next)  the low halves where m has a bit, in order below `next`; as many
//                                 as kWidth words below are overwritten
//   uint32_t symbol_at(starts, slot)  how many of a row's 32 starts are not above the slot, less
//   one
#pragma once

#include <algorithm>
#include <bit>

#include "cpu/lane_kernels.hpp"

namespace resfed {

// What the classes of symbols are, packed into one number, and the parts of table rows.
template <class Isa>
struct SymbolTables {
  static constexpr unsigned kGapBits = 16, kGapLog2 = 24;  // the first gap is below
  typename Isa::Table32 gaps{[](uint32_t s) {
    if (s == kGapEscape) return kExponentBits << kGapBits | 15u << kGapLog2;
    const ValueClass c = gap_class(s);
    return c.first | c.n_bits << kGapBits | floor_log2(c.first) << kGapLog2;
  }};
  static constexpr unsigned kLevelBits = 8, kLevelGrowth = 16;  // the first level is below
  typename Isa::Table32 levels{[](uint32_t s) {
    const uint32_t symbol = s % kSignChanged, growth = typical_level(symbol) << 3;
    if (symbol == kLevelEscape) return kExponentBits << kLevelBits | growth << kLevelGrowth;
    const ValueClass c = level_class(symbol);
    return c.first | c.n_bits << kLevelBits | growth << kLevelGrowth;
  }};
  typename Isa::Table64 activity_rows{[](uint32_t i) { return 2 * plain_activity_class(4 * i); }};
  typename Isa::Table64 block_activity_rows{
      [](uint32_t i) { return 2 * block_activity_class(4 * i); }};
  typename Isa::Table64 level_rows{[](uint32_t i) { return 3 * level_average_class(i); }};
};

// kParts: vectors that the lanes take. kBlocks: some of the lanes have blocks.
template <class Isa, size_t kParts, bool kBlocks>
class VectorDecoder {
  using Vector = typename Isa::Vector;
  using Mask = typename Isa::Mask;
  using Tables = SymbolTables<Isa>;
  static constexpr size_t kWidth = Isa::kWidth;

 public:
  VectorDecoder(LaneArrays* lanes, uint64_t n_elems, const uint16_t* words)
      : lanes_(*lanes), n_elems_(n_elems), next_(words) {
    for (size_t h = 0; h < kParts; ++h) {
      const size_t first = h * kWidth;
      on_[h] = Isa::first(std::clamp<size_t>(lanes_.n, first, first + kWidth) - first);
      state_[h] = Isa::load(lanes_.state + first);
      activity_[h] = Isa::load(lanes_.activity + first);
      log2_[h] = Isa::load(lanes_.gap_log2 + first);
      level_[h] = Isa::load(lanes_.level + first);
      changes_[h] = Isa::load(lanes_.changes + first);
      sign_[h] = Isa::load(lanes_.sign + first);
      shift_[h] = Isa::load(lanes_.shift + first);
      if (!kBlocks) continue;
      block_size_[h] = Isa::load(lanes_.block_size + first);
      left_[h] = Isa::load(lanes_.left + first);
      blocks_[h] = Isa::both(on_[h], Isa::nonzero(block_size_[h]));
      crossed_[h] = Isa::nonzero(Isa::load(lanes_.crossed + first));
      whole_[h] = Isa::nonzero(Isa::load(lanes_.whole + first));
    }
  }
  ~VectorDecoder() {
    for (size_t h = 0; h < kParts; ++h) {
      const size_t first = h * kWidth;
      Isa::store(lanes_.state + first, state_[h]);
      Isa::store(lanes_.activity + first, activity_[h]);
      Isa::store(lanes_.gap_log2 + first, log2_[h]);
      Isa::store(lanes_.level + first, level_[h]);
      Isa::store(lanes_.changes + first, changes_[h]);
      Isa::store(lanes_.sign + first, sign_[h]);
      if (!kBlocks) continue;
      Isa::store(lanes_.left + first, left_[h]);
      Isa::store(lanes_.crossed + first, Isa::masked(crossed_[h], Isa::all(1)));
      Isa::store(lanes_.whole + first, Isa::masked(whole_[h], Isa::all(1)));
    }
  }

  const uint16_t* next() const { return next_; }

  // One nonzero of each lane; false where one is out of range.
  bool step() {
    for (size_t h = 0; h < kParts; ++h) {
      Vector row = tables_.activity_rows[Isa::template right<2>(activity_[h])];
      row = Isa::add(row, Isa::masked(Isa::nonzero(log2_[h]), Isa::all(16)));
      row = Isa::add(row, Isa::masked(Isa::ge(level_[h], Isa::all(24)), Isa::all(1)));
      if (kBlocks) row = Isa::select(blocks_[h], block_gap_row(h), row);
      Isa::store(rows_ + h * kWidth, row);
    }
    take(lanes_.gaps);
    for (size_t h = 0; h < kParts; ++h) {
      const Vector symbol = Isa::load(symbols_ + h * kWidth), gaps = tables_.gaps[symbol];
      log2_[h] = Isa::template right<Tables::kGapLog2>(gaps);
      const Vector decayed = Isa::sub(activity_[h], Isa::template right<3>(activity_[h]));
      activity_[h] = Isa::add(decayed, Isa::template left<1>(log2_[h]));
      const Vector n_bits = Isa::band(Isa::template right<Tables::kGapBits>(gaps), Isa::all(0xff));
      value_[h] = Isa::add(Isa::band(gaps, Isa::all(0xffff)), take_raw(h, n_bits));
      escaped_[h] = Isa::both(on_[h], Isa::eq(symbol, Isa::all(kGapEscape)));
    }
    const bool escape = any(escaped_);
    if (escape && !take_mantissas(kEscapedGapLog2, kMostGapLog2)) return false;
    if (kBlocks) {
      for (size_t h = 0; h < kParts; ++h) add_gap_to_blocks(h);
      if (escape) add_escaped_gaps_to_blocks();
    }
    if (!go_on(escape)) return false;
    for (size_t h = 0; h < kParts; ++h) {
      Vector row = tables_.level_rows[Isa::min(level_[h], Isa::all(63))];
      for (const uint32_t more : {72u, 96u, 144u}) {
        row = Isa::add(row, Isa::masked(Isa::ge(level_[h], Isa::all(more)), Isa::all(3)));
      }
      Mask apart = Isa::nonzero(log2_[h]);
      if (kBlocks) {
        apart = Isa::either(Isa::without(apart, blocks_[h]), Isa::both(crossed_[h], blocks_[h]));
      }
      row = Isa::add(row, Isa::masked(apart, Isa::all(36)));
      for (const uint32_t more : {8u, 80u}) {
        row = Isa::add(row, Isa::masked(Isa::ge(changes_[h], Isa::all(more)), Isa::all(1)));
      }
      Isa::store(rows_ + h * kWidth, row);
    }
    take(lanes_.levels);
    Mask raw[kParts];
    for (size_t h = 0; h < kParts; ++h) {
      const Vector symbol = Isa::load(symbols_ + h * kWidth), levels = tables_.levels[symbol];
      const Mask changed = Isa::ge(symbol, Isa::all(kSignChanged));
      sign_[h] = Isa::bxor(sign_[h], Isa::ones(changed));
      const Vector decayed = Isa::sub(changes_[h], Isa::template right<3>(changes_[h]));
      changes_[h] = Isa::add(decayed, Isa::masked(changed, Isa::all(32)));
      level_[h] = Isa::add(Isa::sub(level_[h], Isa::template right<1>(level_[h])),
                           Isa::template right<Tables::kLevelGrowth>(levels));
      value_[h] = Isa::band(levels, Isa::all(0xff));
      const Vector has_raw = Isa::bor(Isa::band(symbol, Isa::all(8)), shift_[h]);
      raw[h] = Isa::both(on_[h], Isa::nonzero(has_raw));
    }
    if (any(raw) && !take_raw_levels()) return false;
    for (size_t h = 0; h < kParts; ++h) {
      Isa::store(numbers_ + h * kWidth, Isa::sub(Isa::bxor(value_[h], sign_[h]), sign_[h]));
    }
    for (size_t i = 0; i < lanes_.n; ++i) {
      *lanes_.out[i]++ = {lanes_.covered[i] - 1, static_cast<int32_t>(numbers_[i])};
    }
    return true;
  }

 private:
  static bool any(const Mask (&masks)[kParts]) {
    Mask found = masks[0];
    for (size_t h = 1; h < kParts; ++h) found = Isa::either(found, masks[h]);
    return Isa::bits(found) != 0;
  }

  Vector block_gap_row(size_t h) const {
    const Mask at_begin = Isa::eq(left_[h], block_size_[h]);
    const Vector place = Isa::select(at_begin, Isa::all(0), Isa::min(left_[h], Isa::all(8)));
    const Vector row = Isa::add(Isa::template left<3>(place),
                                tables_.block_activity_rows[Isa::template right<2>(activity_[h])]);
    return Isa::add(row, Isa::masked(whole_[h], Isa::all(1)));
  }
  // As LaneContexts::add_gap, for gaps that are not escaped: they are below 2^15.
  void add_gap_to_blocks(size_t h) {
    const Vector gap = value_[h], left = left_[h], size = block_size_[h];
    const Mask first = Isa::eq(left, Isa::all(0));
    const Mask at_begin = Isa::eq(left, size);
    const Mask not_inside = Isa::ge(gap, left), to_end = Isa::eq(gap, left);
    const Vector past = Isa::masked(not_inside, Isa::sub(gap, left));
    const Vector quotient = Isa::masked(blocks_[h], Isa::quotient(past, size));
    const Vector rest = Isa::sub(past, Isa::mul(quotient, size));
    Vector after = Isa::select(not_inside, Isa::sub(size, rest), Isa::sub(left, gap));
    after = Isa::select(first, Isa::load(lanes_.first_left + h * kWidth), after);
    const Mask crossed = Isa::either(at_begin, Isa::without(not_inside, to_end));
    crossed_[h] = Isa::without(crossed, first);
    const Mask fresh = Isa::either(first, crossed_[h]);
    const Mask begins = Isa::eq(after, Isa::sub(size, Isa::all(1)));
    const Mask goes_on = Isa::both(whole_[h], Isa::eq(gap, Isa::all(1)));
    whole_[h] = Isa::either(Isa::both(fresh, begins), Isa::without(goes_on, fresh));
    old_left_[h] = left;
    left_[h] = after;
  }
  void add_escaped_gaps_to_blocks() {
    alignas(64) uint32_t left[kLanesOfSlice], after[kLanesOfSlice], crossed[kLanesOfSlice],
        whole[kLanesOfSlice];
    for (size_t h = 0; h < kParts; ++h) {
      Isa::store(left + h * kWidth, old_left_[h]);
      Isa::store(after + h * kWidth, left_[h]);
      Isa::store(crossed + h * kWidth, Isa::ones(crossed_[h]));
      Isa::store(whole + h * kWidth, Isa::ones(whole_[h]));
    }
    for (size_t i = 0; i < lanes_.n; ++i) {
      const uint32_t size = lanes_.block_size[i];
      if (size == 0 || symbols_[i] != kGapEscape) continue;
      LaneContexts<true> contexts;
      contexts.left = left[i];
      contexts.block = {size, size - 1};  // the position stands for the first nonzero only
      contexts.add_gap(values_[i], 15);
      after[i] = left[i] == 0 ? lanes_.first_left[i] : contexts.left;
      crossed[i] = contexts.crossed ? 1 : 0;
      whole[i] = after[i] == size - 1 ? 1 : 0;
    }
    for (size_t h = 0; h < kParts; ++h) {
      left_[h] = Isa::load(after + h * kWidth);
      crossed_[h] = Isa::nonzero(Isa::load(crossed + h * kWidth));
      whole_[h] = Isa::nonzero(Isa::load(whole + h * kWidth));
    }
  }

  // Adds the gaps to what the lanes have covered; false where that is out of range.
  bool go_on(bool escape) {
    if (!escape) {
      for (size_t h = 0; h < kParts; ++h) Isa::store(numbers_ + h * kWidth, value_[h]);
    }
    bool inside = true;
    for (size_t i = 0; i < lanes_.n; ++i) {
      lanes_.covered[i] += escape ? values_[i] : numbers_[i];
      inside &= lanes_.covered[i] <= n_elems_;
    }
    return inside;
  }

  Vector refilled(Mask on, Vector state) {
    const Mask need = Isa::both(on, Isa::eq(Isa::template right<16>(state), Isa::all(0)));
    const Vector words = Isa::expanded(need, next_);
    next_ += std::popcount(Isa::bits(need));
    return Isa::select(need, Isa::bor(Isa::template left<16>(state), words), state);
  }
  Vector take_raw(size_t h, Vector n_bits) {
    const Vector mask = Isa::sub(Isa::left(Isa::all(1), n_bits), Isa::all(1));
    const Vector value = Isa::band(state_[h], mask);
    state_[h] = refilled(on_[h], Isa::right(state_[h], n_bits));
    return value;
  }

  // The symbols that own the states' slots, in rows_ of the lanes' tables.
  void take(const Table* const (&tables)[kLanesOfSlice]) {
    for (size_t h = 0; h < kParts; ++h) Isa::store(numbers_ + h * kWidth, state_[h]);
    for (size_t i = 0; i < lanes_.n; ++i) {
      const Table& table = *tables[i];
      const uint32_t row = rows_[i], slot = numbers_[i] & (kFrequencyOne - 1);
      symbols_[i] = Isa::symbol_at(table.starts[row], slot);
      numbers_[i] = without_symbol(numbers_[i], table.slots[row * kSymbols + symbols_[i]]);
    }
    for (size_t h = 0; h < kParts; ++h) {
      state_[h] = refilled(on_[h], Isa::load(numbers_ + h * kWidth));
    }
  }

  // Of the escaped lanes, the values whose logarithms stand in value_; of all, values_.
  bool take_mantissas(uint32_t least_log2, uint32_t most_log2) {
    alignas(64) uint32_t logs[kLanesOfSlice];
    alignas(64) uint32_t escaped[kLanesOfSlice];
    for (size_t h = 0; h < kParts; ++h) {
      Isa::store(logs + h * kWidth, value_[h]);
      Isa::store(escaped + h * kWidth, Isa::ones(escaped_[h]));
      Isa::store(numbers_ + h * kWidth, state_[h]);
    }
    for (size_t i = 0; i < lanes_.n; ++i) {
      values_[i] = logs[i];
      if (escaped[i] == 0) continue;
      if (logs[i] < least_log2 || logs[i] > most_log2) return false;
      values_[i] = 1;
      uint32_t state = numbers_[i];
      for (uint32_t left = logs[i]; left > 0;) {
        const unsigned n = std::min(kPieceBits, left);
        values_[i] = values_[i] << n | (state & ((1u << n) - 1));
        state >>= n;
        if (state < kLaneStart) state = state << 16 | *next_++;
        left -= n;
      }
      numbers_[i] = state;
    }
    for (size_t h = 0; h < kParts; ++h) state_[h] = Isa::load(numbers_ + h * kWidth);
    return true;
  }

  // A level as symbols see it.
  Vector shifted_level(size_t h) const {
    return Isa::add(Isa::right(Isa::sub(value_[h], Isa::all(1)), shift_[h]), Isa::all(1));
  }
  bool take_raw_levels() {
    Mask bad[kParts];
    for (size_t h = 0; h < kParts; ++h) {
      const Vector symbol = Isa::band(Isa::load(symbols_ + h * kWidth), Isa::all(15));
      escaped_[h] = Isa::both(on_[h], Isa::eq(symbol, Isa::all(kLevelEscape)));
      const Mask classes = Isa::without(on_[h], escaped_[h]);
      const Vector levels = tables_.levels[symbol];
      const Vector n_bits =
          Isa::band(Isa::template right<Tables::kLevelBits>(levels), Isa::all(0xff));
      const Vector raw = take_raw(h, Isa::add(n_bits, Isa::masked(classes, shift_[h])));
      const Vector first = Isa::sub(Isa::band(levels, Isa::all(0xff)), Isa::all(1));
      const Vector least = Isa::add(Isa::left(first, shift_[h]), Isa::all(1));
      value_[h] = Isa::add(Isa::masked(classes, least), raw);
      // Level 8 has a symbol of its own.
      const Mask large = Isa::both(on_[h], Isa::eq(symbol, Isa::all(8)));
      bad[h] = Isa::both(large, Isa::eq(shifted_level(h), Isa::all(8)));
    }
    if (any(bad)) return false;
    if (!any(escaped_)) return true;
    if (!take_mantissas(kEscapedLevelLog2, floor_log2(kMaxLevel))) return false;
    for (size_t i = 0; i < lanes_.n; ++i) numbers_[i] = static_cast<uint32_t>(values_[i]);
    for (size_t h = 0; h < kParts; ++h) {
      value_[h] = Isa::load(numbers_ + h * kWidth);
      const Mask large = Isa::ge(value_[h], Isa::all(kMaxLevel + 1));
      const Mask fits = Isa::without(Isa::ge(shifted_level(h), Isa::all(kEscapedLevel)), large);
      bad[h] = Isa::without(escaped_[h], fits);
    }
    return !any(bad);
  }

  LaneArrays& lanes_;
  const Tables tables_;
  const uint64_t n_elems_;
  const uint16_t* next_;
  Mask on_[kParts], escaped_[kParts];
  Vector state_[kParts], activity_[kParts], log2_[kParts], level_[kParts], changes_[kParts],
      sign_[kParts], shift_[kParts], value_[kParts];
  // Only with blocks.
  Mask blocks_[kParts], crossed_[kParts], whole_[kParts];
  Vector block_size_[kParts], left_[kParts], old_left_[kParts];
  alignas(64) uint32_t rows_[kLanesOfSlice], symbols_[kLanesOfSlice] = {},
                                             numbers_[kLanesOfSlice] = {};
  alignas(64) uint64_t values_[kLanesOfSlice] = {};
};

template <class Isa, size_t kParts>
class VectorEncoder {
  using Vector = typename Isa::Vector;
  using Mask = typename Isa::Mask;
  static constexpr size_t kWidth = Isa::kWidth;

 public:
  VectorEncoder(LaneCodes* lanes, uint16_t* next) : lanes_(*lanes), next_(next) {
    for (size_t h = 0; h < kParts; ++h) {
      const size_t first = h * kWidth;
      on_[h] = Isa::first(std::clamp<size_t>(lanes_.n, first, first + kWidth) - first);
      state_[h] = Isa::load(lanes_.state + first);
      shift_[h] = Isa::load(lanes_.shift + first);
    }
  }
  ~VectorEncoder() {
    for (size_t h = 0; h < kParts; ++h) Isa::store(lanes_.state + h * kWidth, state_[h]);
  }
  uint16_t* next() const { return next_; }

  // Of each lane, the nonzero with this number.
  void step(uint64_t number, bool raw_levels) {
    if (raw_levels) {
      for (size_t i = 0; i < lanes_.n; ++i) {
        raw_[i] = lanes_.raw_levels[i][number];
        symbols_[i] = lanes_.levels[i][number] % kSymbols;
      }
      for (size_t h = kParts; h-- > 0;) {
        put_raw(h, Isa::add(level_bits_[Isa::load(symbols_ + h * kWidth)], shift_[h]));
      }
    }
    for (size_t i = 0; i < lanes_.n; ++i) {
      const uint32_t gap = lanes_.gaps[i][number];
      gap_slots_[i] = lanes_.gap_slots[i][gap];
      level_slots_[i] = lanes_.level_slots[i][lanes_.levels[i][number]];
      raw_[i] = lanes_.raw_gaps[i][number];
      symbols_[i] = gap % kSymbols;
    }
    for (size_t h = kParts; h-- > 0;) put(h, level_slots_);
    for (size_t h = kParts; h-- > 0;) put_raw(h, gap_bits_[Isa::load(symbols_ + h * kWidth)]);
    for (size_t h = kParts; h-- > 0;) put(h, gap_slots_);
  }

 private:
  void put_raw(size_t h, Vector n_bits) {
    const Vector above = Isa::right(state_[h], Isa::sub(Isa::all(32), n_bits));
    make_room(h, Isa::both(on_[h], Isa::nonzero(above)));
    state_[h] = Isa::bor(Isa::left(state_[h], n_bits), Isa::load(raw_ + h * kWidth));
  }
  // Writes a word of each full lane.
  void make_room(size_t h, Mask full) {
    next_ = Isa::pushed(full, state_[h], next_);
    state_[h] = Isa::select(full, Isa::template right<16>(state_[h]), state_[h]);
  }
  void put(size_t h, const Slots* slots) {
    static_assert(sizeof(Slots) == sizeof(uint32_t) && std::endian::native == std::endian::little);
    const Vector packed = Isa::load(reinterpret_cast<const uint32_t*>(slots) + h * kWidth);
    const Vector freq = Isa::template right<16>(packed),
                 start = Isa::band(packed, Isa::all(0xffff));
    const Vector limit = Isa::template left<32 - kFrequencyBits>(freq);
    make_room(h, Isa::both(on_[h], Isa::ge(state_[h], limit)));
    Vector quotient = Isa::near_quotient(state_[h], freq);
    Vector rest = Isa::sub(state_[h], Isa::mul(quotient, freq));
    const Mask over = Isa::ge(rest, Isa::all(1u << 31));  // below 0
    quotient = Isa::sub(quotient, Isa::masked(over, Isa::all(1)));
    rest = Isa::add(rest, Isa::masked(over, freq));
    quotient = Isa::add(quotient, Isa::masked(Isa::ge(rest, freq), Isa::all(1)));
    const Vector growth = Isa::mul(quotient, Isa::sub(Isa::all(kFrequencyOne), freq));
    state_[h] = Isa::select(on_[h], Isa::add(Isa::add(state_[h], growth), start), state_[h]);
  }

  LaneCodes& lanes_;
  const typename Isa::Table32 gap_bits_{
      [](uint32_t s) { return s == kGapEscape ? 0 : gap_class(s).n_bits; }};
  const typename Isa::Table32 level_bits_{
      [](uint32_t s) { return s % 16 == kLevelEscape ? 0 : level_class(s % 16).n_bits; }};
  uint16_t* next_;
  Mask on_[kParts];
  Vector state_[kParts], shift_[kParts];
  alignas(64) Slots gap_slots_[kLanesOfSlice] = {}, level_slots_[kLanesOfSlice] = {};
  alignas(64) uint32_t raw_[kLanesOfSlice] = {}, symbols_[kLanesOfSlice] = {};
};

// Calls run.operator()<kParts>() with the vectors that so many lanes take, rounded up to a power of
// two.
template <class Isa, size_t kParts = kLanesOfSlice / Isa::kWidth, class Run>
auto with_parts(size_t n_lanes, const Run& run) {
  if constexpr (kParts > 1) {
    if (n_lanes <= kParts / 2 * Isa::kWidth) return with_parts<Isa, kParts / 2>(n_lanes, run);
  }
  return run.template operator()<kParts>();
}

template <class Isa>
const uint16_t* decode_lanes_with(LaneArrays* lanes, uint64_t n_steps, uint64_t n_elems,
                                  const uint16_t* words, const uint16_t* end) {
  const auto run = [&](auto decoder) -> const uint16_t* {
    for (uint64_t step = 0; step < n_steps; ++step) {
      if (!decoder->step() || decoder->next() > end) return nullptr;
    }
    return decoder->next();
  };
  const bool blocks = std::any_of(lanes->block_size, lanes->block_size + lanes->n,
                                  [](uint32_t size) { return size > 0; });
  return with_parts<Isa>(lanes->n, [&]<size_t kParts>() {
    if (blocks) {
      VectorDecoder<Isa, kParts, true> decoder(lanes, n_elems, words);
      return run(&decoder);
    }
    VectorDecoder<Isa, kParts, false> decoder(lanes, n_elems, words);
    return run(&decoder);
  });
}

template <class Isa>
uint16_t* encode_lanes_with(LaneCodes* lanes, const uint8_t* steps, uint64_t first, uint64_t last,
                            uint16_t* next) {
  return with_parts<Isa>(lanes->n, [&]<size_t kParts>() {
    VectorEncoder<Isa, kParts> encoder(lanes, next);
    for (uint64_t number = last; number-- > first;) encoder.step(number, steps[number] != 0);
    return encoder.next();
  });
}

}  // namespace resfed

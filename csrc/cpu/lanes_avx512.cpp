// Sixteen lanes at a time. Compiled with -mavx512f -mavx512bw; reached only after the processor was
// asked.
#include <immintrin.h>

#include <algorithm>
#include <bit>

#include "cpu/lane_kernels.hpp"

namespace resfed {
namespace {

constexpr size_t kWidth = 16;
using Vector = __m512i;

Vector all(uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }

// A table of 32 numbers.
struct Lookup32 {
  Vector low, high;
  template <class Function>
  explicit Lookup32(Function function) {
    alignas(64) uint32_t of[32];
    for (uint32_t i = 0; i < 32; ++i) of[i] = static_cast<uint32_t>(function(i));
    low = _mm512_load_si512(of);
    high = _mm512_load_si512(of + 16);
  }
  Vector operator[](Vector index) const { return _mm512_permutex2var_epi32(low, index, high); }
};

// A table of 64 numbers below 2^16; the high half of each index must be 0.
struct Lookup64 {
  Vector low, high;
  template <class Function>
  explicit Lookup64(Function function) {
    alignas(64) uint16_t of[64];
    for (uint32_t i = 0; i < 64; ++i) of[i] = static_cast<uint16_t>(function(i));
    low = _mm512_load_si512(of);
    high = _mm512_load_si512(of + 32);
  }
  Vector operator[](Vector index) const {
    return _mm512_and_si512(_mm512_permutex2var_epi16(low, index, high), all(0xffff));
  }
};

struct Tables {
  Lookup32 gap_first{[](uint32_t s) { return s == kGapEscape ? 0 : gap_class(s).first; }};
  Lookup32 gap_bits{
      [](uint32_t s) { return s == kGapEscape ? kExponentBits : gap_class(s).n_bits; }};
  Lookup32 gap_log2{
      [](uint32_t s) { return s == kGapEscape ? 15 : floor_log2(gap_class(s).first); }};
  Lookup32 level_first{
      [](uint32_t s) { return s % 16 == kLevelEscape ? 0 : level_class(s % 16).first; }};
  Lookup32 level_bits{[](uint32_t s) {
    return s % 16 == kLevelEscape ? kExponentBits : level_class(s % 16).n_bits;
  }};
  Lookup32 level_growth{[](uint32_t s) { return typical_level(s % 16) << 3; }};
  Lookup64 activity_rows{[](uint32_t i) { return 2 * plain_activity_class(4 * i); }};
  Lookup64 block_activity_rows{[](uint32_t i) { return 2 * block_activity_class(4 * i); }};
  Lookup64 level_rows{[](uint32_t i) { return 3 * level_average_class(i); }};
};

// kHalves: vectors that the lanes take, 1 or 2. kBlocks: some of the lanes have blocks.
template <size_t kHalves, bool kBlocks>
class Decoder {
 public:
  Decoder(LaneArrays* lanes, uint64_t n_elems, const uint16_t* words)
      : lanes_(*lanes), n_elems_(_mm512_set1_epi64(static_cast<int64_t>(n_elems))), next_(words) {
    for (size_t h = 0; h < kHalves; ++h) {
      const size_t first = h * kWidth;
      const size_t n = std::min(kWidth, lanes_.n - first);
      on_[h] = static_cast<__mmask16>((1u << n) - 1);
      state_[h] = _mm512_load_si512(lanes_.state + first);
      activity_[h] = _mm512_load_si512(lanes_.activity + first);
      log2_[h] = _mm512_load_si512(lanes_.gap_log2 + first);
      level_[h] = _mm512_load_si512(lanes_.level + first);
      changes_[h] = _mm512_load_si512(lanes_.changes + first);
      sign_[h] = _mm512_load_si512(lanes_.sign + first);
      shift_[h] = _mm512_load_si512(lanes_.shift + first);
      block_size_[h] = _mm512_load_si512(lanes_.block_size + first);
      left_[h] = _mm512_load_si512(lanes_.left + first);
      blocks_[h] = _mm512_mask_test_epi32_mask(on_[h], block_size_[h], block_size_[h]);
      crossed_[h] = mask_of(lanes_.crossed + first);
      whole_[h] = mask_of(lanes_.whole + first);
      for (size_t q = 0; q < 2; ++q) {
        covered_[h][q] = _mm512_load_si512(lanes_.covered + first + 8 * q);
        out_[h][q] = _mm512_load_si512(lanes_.out + first + 8 * q);
      }
    }
  }
  ~Decoder() {
    for (size_t h = 0; h < kHalves; ++h) {
      const size_t first = h * kWidth;
      _mm512_store_si512(lanes_.state + first, state_[h]);
      _mm512_store_si512(lanes_.activity + first, activity_[h]);
      _mm512_store_si512(lanes_.gap_log2 + first, log2_[h]);
      _mm512_store_si512(lanes_.level + first, level_[h]);
      _mm512_store_si512(lanes_.changes + first, changes_[h]);
      _mm512_store_si512(lanes_.sign + first, sign_[h]);
      _mm512_store_si512(lanes_.left + first, left_[h]);
      _mm512_store_si512(lanes_.crossed + first, _mm512_maskz_mov_epi32(crossed_[h], all(1)));
      _mm512_store_si512(lanes_.whole + first, _mm512_maskz_mov_epi32(whole_[h], all(1)));
      for (size_t q = 0; q < 2; ++q) {
        _mm512_store_si512(lanes_.covered + first + 8 * q, covered_[h][q]);
        _mm512_store_si512(lanes_.out + first + 8 * q, out_[h][q]);
      }
    }
  }

  const uint16_t* next() const { return next_; }

  // One nonzero of each lane; false where one is out of range.
  bool step() {
    for (size_t h = 0; h < kHalves; ++h) {
      const __mmask16 apart = _mm512_test_epi32_mask(log2_[h], log2_[h]);
      Vector row = tables_.activity_rows[_mm512_srli_epi32(activity_[h], 2)];
      row = _mm512_mask_add_epi32(row, apart, row, all(16));
      row = _mm512_mask_add_epi32(row, _mm512_cmpge_epu32_mask(level_[h], all(24)), row, all(1));
      if (kBlocks) row = _mm512_mask_mov_epi32(row, blocks_[h], block_gap_row(h));
      _mm512_store_si512(rows_ + h * kWidth, row);
    }
    take(lanes_.gaps);
    for (size_t h = 0; h < kHalves; ++h) {
      const Vector symbol = _mm512_load_si512(symbols_ + h * kWidth);
      log2_[h] = tables_.gap_log2[symbol];
      activity_[h] =
          _mm512_add_epi32(_mm512_sub_epi32(activity_[h], _mm512_srli_epi32(activity_[h], 3)),
                           _mm512_slli_epi32(log2_[h], 1));
      value_[h] = _mm512_add_epi32(tables_.gap_first[symbol],
                                   take_raw(h, on_[h], tables_.gap_bits[symbol]));
      escaped_[h] = _mm512_mask_cmpeq_epi32_mask(on_[h], symbol, all(kGapEscape));
    }
    const bool escape = any_escaped();
    if (escape && !take_mantissas(kEscapedGapLog2, kMostGapLog2)) return false;
    if (kBlocks) {
      for (size_t h = 0; h < kHalves; ++h) add_gap_to_blocks(h);
      if (escape) add_escaped_gaps_to_blocks();
    }
    __mmask8 outside = 0;
    for (size_t h = 0; h < kHalves; ++h) {
      for (size_t q = 0; q < 2; ++q) {
        const __m256i half =
            q == 0 ? _mm512_castsi512_si256(value_[h]) : _mm512_extracti64x4_epi64(value_[h], 1);
        const Vector gap =
            escape ? _mm512_load_si512(values_ + h * kWidth + 8 * q) : _mm512_cvtepu32_epi64(half);
        covered_[h][q] = _mm512_add_epi64(covered_[h][q], gap);
        const auto on = static_cast<__mmask8>(on_[h] >> 8 * q);
        outside |= _mm512_mask_cmpgt_epu64_mask(on, covered_[h][q], n_elems_);
      }
      Vector row = tables_.level_rows[_mm512_min_epu32(level_[h], all(63))];
      for (const uint32_t more : {72u, 96u, 144u}) {
        const __mmask16 reached = _mm512_cmpge_epu32_mask(level_[h], all(more));
        row = _mm512_mask_add_epi32(row, reached, row, all(3));
      }
      __mmask16 apart = _mm512_test_epi32_mask(log2_[h], log2_[h]);
      if (kBlocks)
        apart = static_cast<__mmask16>((apart & ~blocks_[h]) | (crossed_[h] & blocks_[h]));
      row = _mm512_mask_add_epi32(row, apart, row, all(36));
      for (const uint32_t more : {8u, 80u}) {
        const __mmask16 reached = _mm512_cmpge_epu32_mask(changes_[h], all(more));
        row = _mm512_mask_add_epi32(row, reached, row, all(1));
      }
      _mm512_store_si512(rows_ + h * kWidth, row);
    }
    if (outside != 0) return false;
    take(lanes_.levels);
    bool raw = false;
    for (size_t h = 0; h < kHalves; ++h) {
      const Vector symbol = _mm512_load_si512(symbols_ + h * kWidth);
      const __mmask16 changed = _mm512_cmpge_epu32_mask(symbol, all(kSignChanged));
      sign_[h] = _mm512_mask_xor_epi32(sign_[h], changed, sign_[h], all(~0u));
      const Vector decayed = _mm512_sub_epi32(changes_[h], _mm512_srli_epi32(changes_[h], 3));
      changes_[h] = _mm512_mask_add_epi32(decayed, changed, decayed, all(32));
      level_[h] = _mm512_add_epi32(_mm512_sub_epi32(level_[h], _mm512_srli_epi32(level_[h], 1)),
                                   tables_.level_growth[symbol]);
      value_[h] = tables_.level_first[symbol];
      const Vector has_raw = _mm512_or_si512(_mm512_and_si512(symbol, all(8)), shift_[h]);
      raw |= _mm512_mask_test_epi32_mask(on_[h], has_raw, has_raw) != 0;
    }
    if (raw && !take_raw_levels()) return false;
    for (size_t h = 0; h < kHalves; ++h) {
      const Vector level = _mm512_sub_epi32(_mm512_xor_si512(value_[h], sign_[h]), sign_[h]);
      const Vector bits = _mm512_and_si512(level, all((1u << SentSymbol::kLevelBits) - 1));
      for (size_t q = 0; q < 2; ++q) {
        const __m256i half =
            q == 0 ? _mm512_castsi512_si256(bits) : _mm512_extracti64x4_epi64(bits, 1);
        const Vector index = _mm512_sub_epi64(covered_[h][q], _mm512_set1_epi64(1));
        const Vector packed = _mm512_or_si512(_mm512_slli_epi64(index, SentSymbol::kLevelBits),
                                              _mm512_cvtepu32_epi64(half));
        const auto on = static_cast<__mmask8>(on_[h] >> 8 * q);
        _mm512_mask_i64scatter_epi64(nullptr, on, out_[h][q], packed, 1);
        out_[h][q] = _mm512_add_epi64(out_[h][q], _mm512_set1_epi64(sizeof(SentSymbol)));
      }
    }
    return true;
  }

 private:
  bool any_escaped() const { return (escaped_[0] | escaped_[kHalves - 1]) != 0; }

  static __mmask16 mask_of(const uint32_t* numbers) {
    const Vector v = _mm512_load_si512(numbers);
    return _mm512_test_epi32_mask(v, v);
  }

  Vector block_gap_row(size_t h) const {
    Vector place = _mm512_min_epu32(left_[h], all(8));
    const __mmask16 at_begin = _mm512_cmpeq_epi32_mask(left_[h], block_size_[h]);
    place = _mm512_mask_mov_epi32(place, at_begin, all(0));
    const Vector row =
        _mm512_add_epi32(_mm512_slli_epi32(place, 3),
                         tables_.block_activity_rows[_mm512_srli_epi32(activity_[h], 2)]);
    return _mm512_mask_add_epi32(row, whole_[h], row, all(1));
  }
  // As LaneContexts::add_gap, for gaps that are not escaped: they are below 2^15, so a quotient of
  // two floats rounds to no other integer.
  void add_gap_to_blocks(size_t h) {
    const Vector gap = value_[h], left = left_[h], size = block_size_[h];
    const __mmask16 first = _mm512_testn_epi32_mask(left, left);
    const __mmask16 at_begin = _mm512_cmpeq_epi32_mask(left, size);
    const __mmask16 inside = _mm512_cmplt_epu32_mask(gap, left);
    const __mmask16 to_end = _mm512_cmpeq_epi32_mask(gap, left);
    const Vector past = _mm512_maskz_sub_epi32(static_cast<__mmask16>(~inside), gap, left);
    const Vector quotient = _mm512_maskz_cvttps_epu32(
        blocks_[h], _mm512_div_ps(_mm512_cvtepu32_ps(past), _mm512_cvtepu32_ps(size)));
    const Vector rest = _mm512_sub_epi32(past, _mm512_mullo_epi32(quotient, size));
    Vector after = _mm512_mask_sub_epi32(_mm512_sub_epi32(size, rest), inside, left, gap);
    after = _mm512_mask_mov_epi32(after, first, _mm512_load_si512(lanes_.first_left + h * kWidth));
    crossed_[h] = static_cast<__mmask16>(~first & (at_begin | ~(inside | to_end)));
    const __mmask16 begins = _mm512_cmpeq_epi32_mask(after, _mm512_sub_epi32(size, all(1)));
    const __mmask16 goes_on = whole_[h] & _mm512_cmpeq_epi32_mask(gap, all(1));
    const __mmask16 fresh = first | crossed_[h];
    whole_[h] = static_cast<__mmask16>((fresh & begins) | (~fresh & goes_on));
    old_left_[h] = left;
    left_[h] = after;
  }
  void add_escaped_gaps_to_blocks() {
    for (size_t i = 0; i < lanes_.n; ++i) {
      const size_t h = i / kWidth;
      const auto bit = static_cast<__mmask16>(1u << i % kWidth);
      if ((escaped_[h] & blocks_[h] & bit) == 0) continue;
      LaneContexts<true> contexts;
      alignas(64) uint32_t left[kWidth];
      _mm512_store_si512(left, old_left_[h]);
      contexts.left = left[i % kWidth];
      // The position stands for the first nonzero only.
      contexts.block = {lanes_.block_size[i], lanes_.block_size[i] - 1};
      contexts.add_gap(values_[i], 15);
      if (contexts.left != 0 && left[i % kWidth] == 0) contexts.left = lanes_.first_left[i];
      const bool whole = contexts.left == lanes_.block_size[i] - 1;
      _mm512_store_si512(left, left_[h]);
      left[i % kWidth] = contexts.left;
      left_[h] = _mm512_load_si512(left);
      crossed_[h] =
          static_cast<__mmask16>(contexts.crossed ? crossed_[h] | bit : crossed_[h] & ~bit);
      whole_[h] = static_cast<__mmask16>(whole ? whole_[h] | bit : whole_[h] & ~bit);
    }
  }

  Vector refilled(__mmask16 on, Vector state) {
    const __mmask16 need = _mm512_mask_cmplt_epu32_mask(on, state, all(kLaneStart));
    const Vector words =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(next_)));
    next_ += std::popcount(static_cast<unsigned>(need));
    return _mm512_mask_or_epi32(state, need, _mm512_slli_epi32(state, 16),
                                _mm512_maskz_expand_epi32(need, words));
  }
  Vector take_raw(size_t h, __mmask16 on, Vector n_bits) {
    const Vector mask = _mm512_sub_epi32(_mm512_sllv_epi32(all(1), n_bits), all(1));
    const Vector value = _mm512_and_si512(state_[h], mask);
    const Vector rest = _mm512_mask_srlv_epi32(state_[h], on, state_[h], n_bits);
    state_[h] = refilled(on, rest);
    return value;
  }

  // The symbols that own the states' slots, in rows_ of the lanes' tables: a row's 32 starts are
  // compared with a slot at once.
  void take(const Table* const (&tables)[kLanesOfSlice]) {
    alignas(64) uint32_t states[kLanesOfSlice];
    for (size_t h = 0; h < kHalves; ++h) _mm512_store_si512(states + h * kWidth, state_[h]);
    for (size_t i = 0; i < lanes_.n; ++i) {
      const Table& table = *tables[i];
      const uint32_t row = rows_[i], slot = states[i] & (kFrequencyOne - 1);
      const __mmask32 not_after = _mm512_cmple_epu16_mask(
          _mm512_load_si512(table.starts[row]), _mm512_set1_epi16(static_cast<int16_t>(slot)));
      const auto symbol = static_cast<uint32_t>(std::popcount(not_after)) - 1;
      symbols_[i] = symbol;
      states[i] = without_symbol(states[i], table.slots[row * kSymbols + symbol]);
    }
    for (size_t h = 0; h < kHalves; ++h) {
      state_[h] = refilled(on_[h], _mm512_load_si512(states + h * kWidth));
    }
  }

  // Of the escaped lanes, the values whose logarithms stand in value_; of all, values_.
  bool take_mantissas(uint32_t least_log2, uint32_t most_log2) {
    alignas(64) uint32_t logs[kLanesOfSlice], states[kLanesOfSlice];
    for (size_t h = 0; h < kHalves; ++h) {
      _mm512_store_si512(logs + h * kWidth, value_[h]);
      _mm512_store_si512(states + h * kWidth, state_[h]);
    }
    uint32_t escaped = escaped_[0];
    if (kHalves > 1) escaped |= static_cast<uint32_t>(escaped_[kHalves - 1]) << kWidth;
    for (size_t i = 0; i < lanes_.n; ++i) {
      values_[i] = logs[i];
      if ((escaped >> i & 1u) == 0) continue;
      if (logs[i] < least_log2 || logs[i] > most_log2) return false;
      values_[i] = 1;
      for (uint32_t left = logs[i]; left > 0;) {
        const unsigned n = std::min(kPieceBits, left);
        values_[i] = values_[i] << n | (states[i] & ((1u << n) - 1));
        states[i] >>= n;
        if (states[i] < kLaneStart) states[i] = states[i] << 16 | *next_++;
        left -= n;
      }
    }
    for (size_t h = 0; h < kHalves; ++h) state_[h] = _mm512_load_si512(states + h * kWidth);
    return true;
  }

  // A level as symbols see it.
  Vector shifted_level(size_t h) const {
    const Vector high = _mm512_srlv_epi32(_mm512_sub_epi32(value_[h], all(1)), shift_[h]);
    return _mm512_add_epi32(high, all(1));
  }
  bool take_raw_levels() {
    for (size_t h = 0; h < kHalves; ++h) {
      const Vector symbol = _mm512_and_si512(_mm512_load_si512(symbols_ + h * kWidth), all(15));
      escaped_[h] = _mm512_mask_cmpeq_epi32_mask(on_[h], symbol, all(kLevelEscape));
      const auto classes = static_cast<__mmask16>(~escaped_[h]);
      const Vector n_bits = _mm512_mask_add_epi32(tables_.level_bits[symbol], classes,
                                                  tables_.level_bits[symbol], shift_[h]);
      const Vector raw = take_raw(h, on_[h], n_bits);
      Vector first = _mm512_sub_epi32(tables_.level_first[symbol], all(1));
      first = _mm512_add_epi32(_mm512_sllv_epi32(first, shift_[h]), all(1));
      value_[h] = _mm512_add_epi32(_mm512_maskz_mov_epi32(classes, first), raw);
      const __mmask16 large = _mm512_mask_cmpeq_epi32_mask(on_[h], symbol, all(8));
      if (_mm512_mask_cmpeq_epi32_mask(large, shifted_level(h), all(8)) != 0) return false;
    }
    if (!any_escaped()) return true;
    if (!take_mantissas(kEscapedLevelLog2, floor_log2(kMaxLevel))) return false;
    for (size_t h = 0; h < kHalves; ++h) {
      alignas(64) uint32_t levels[kWidth];
      for (size_t i = 0; i < kWidth; ++i) {
        levels[i] = static_cast<uint32_t>(values_[h * kWidth + i]);
      }
      value_[h] = _mm512_load_si512(levels);
      const __mmask16 small =
          _mm512_mask_cmplt_epu32_mask(escaped_[h], shifted_level(h), all(kEscapedLevel));
      const __mmask16 large = _mm512_mask_cmpgt_epu32_mask(escaped_[h], value_[h], all(kMaxLevel));
      if ((small | large) != 0) return false;
    }
    return true;
  }

  LaneArrays& lanes_;
  const Tables tables_;
  Vector n_elems_;
  const uint16_t* next_;
  __mmask16 on_[kHalves], escaped_[kHalves];
  Vector state_[kHalves], activity_[kHalves], log2_[kHalves], level_[kHalves], changes_[kHalves],
      sign_[kHalves], value_[kHalves];
  __mmask16 blocks_[kHalves], crossed_[kHalves], whole_[kHalves];
  Vector shift_[kHalves], block_size_[kHalves], left_[kHalves], old_left_[kHalves];
  Vector covered_[kHalves][2], out_[kHalves][2];
  alignas(64) uint32_t rows_[kLanesOfSlice] = {}, symbols_[kLanesOfSlice] = {};
  alignas(64) uint64_t values_[kLanesOfSlice] = {};
};

template <size_t kHalves>
class Encoder {
 public:
  Encoder(LaneCodes* lanes, uint16_t* next) : lanes_(*lanes), next_(next) {
    for (size_t h = 0; h < kHalves; ++h) {
      const size_t first = h * kWidth;
      const size_t n = std::min(kWidth, lanes_.n - first);
      on_[h] = static_cast<__mmask16>((1u << n) - 1);
      state_[h] = _mm512_load_si512(lanes_.state + first);
      shift_[h] = _mm512_load_si512(lanes_.shift + first);
    }
  }
  ~Encoder() {
    for (size_t h = 0; h < kHalves; ++h) _mm512_store_si512(lanes_.state + h * kWidth, state_[h]);
  }
  uint16_t* next() const { return next_; }

  // Of each lane, the nonzero with this number.
  void step(uint64_t number, bool raw_levels) {
    alignas(64) Slots gap_slots[kLanesOfSlice], level_slots[kLanesOfSlice];
    alignas(64) uint32_t raw[kLanesOfSlice], symbols[kLanesOfSlice];
    if (raw_levels) {
      for (size_t i = 0; i < lanes_.n; ++i) {
        raw[i] = lanes_.raw_levels[i][number];
        symbols[i] = lanes_.levels[i][number] % kSymbols;
      }
      for (size_t h = kHalves; h-- > 0;) {
        const Vector n_bits = level_bits_[_mm512_load_si512(symbols + h * kWidth)];
        put_raw(h, raw + h * kWidth, _mm512_add_epi32(n_bits, shift_[h]));
      }
    }
    for (size_t i = 0; i < lanes_.n; ++i) {
      const uint32_t gap = lanes_.gaps[i][number];
      gap_slots[i] = lanes_.gap_slots[i][gap];
      level_slots[i] = lanes_.level_slots[i][lanes_.levels[i][number]];
      raw[i] = lanes_.raw_gaps[i][number];
      symbols[i] = gap % kSymbols;
    }
    for (size_t h = kHalves; h-- > 0;) put(h, level_slots + h * kWidth);
    for (size_t h = kHalves; h-- > 0;) {
      put_raw(h, raw + h * kWidth, gap_bits_[_mm512_load_si512(symbols + h * kWidth)]);
    }
    for (size_t h = kHalves; h-- > 0;) put(h, gap_slots + h * kWidth);
  }

 private:
  void put_raw(size_t h, const uint32_t* raw, Vector n_bits) {
    const Vector above = _mm512_srlv_epi32(state_[h], _mm512_sub_epi32(all(32), n_bits));
    make_room(h, _mm512_mask_test_epi32_mask(on_[h], above, above));
    state_[h] = _mm512_or_si512(_mm512_sllv_epi32(state_[h], n_bits), _mm512_load_si512(raw));
  }
  // Writes a word of each full lane.
  void make_room(size_t h, __mmask16 full) {
    const Vector words = _mm512_maskz_compress_epi32(full, state_[h]);
    const int n = std::popcount(static_cast<unsigned>(full));
    next_ -= n;
    // All sixteen are stored below what was written: the rest lies above, so it is masked.
    const __m256i narrow = _mm512_cvtepi32_epi16(words);
    alignas(32) uint16_t store[kWidth];
    _mm256_store_si256(reinterpret_cast<__m256i*>(store), narrow);
    std::copy_n(store, n, next_);
    state_[h] = _mm512_mask_srli_epi32(state_[h], full, state_[h], 16);
  }
  void put(size_t h, const Slots* slots) {
    const Vector packed = _mm512_load_si512(slots);
    const Vector freq = _mm512_srli_epi32(packed, 16),
                 start = _mm512_and_si512(packed, all(0xffff));
    const Vector limit = _mm512_slli_epi32(freq, 32 - kFrequencyBits);
    make_room(h, _mm512_mask_cmpge_epu32_mask(on_[h], state_[h], limit));
    // The quotient in floats may be off by one.
    Vector quotient =
        _mm512_cvttps_epu32(_mm512_div_ps(_mm512_cvtepu32_ps(state_[h]), _mm512_cvtepu32_ps(freq)));
    Vector rest = _mm512_sub_epi32(state_[h], _mm512_mullo_epi32(quotient, freq));
    const __mmask16 over = _mm512_cmplt_epi32_mask(rest, all(0));
    quotient = _mm512_mask_sub_epi32(quotient, over, quotient, all(1));
    rest = _mm512_mask_add_epi32(rest, over, rest, freq);
    const __mmask16 under = _mm512_cmpge_epi32_mask(rest, freq);
    quotient = _mm512_mask_add_epi32(quotient, under, quotient, all(1));
    const Vector growth = _mm512_mullo_epi32(quotient, _mm512_sub_epi32(all(kFrequencyOne), freq));
    const Vector grown = _mm512_add_epi32(_mm512_add_epi32(state_[h], growth), start);
    state_[h] = _mm512_mask_mov_epi32(state_[h], on_[h], grown);
  }

  LaneCodes& lanes_;
  Lookup32 gap_bits_{[](uint32_t s) { return s == kGapEscape ? 0 : gap_class(s).n_bits; }};
  Lookup32 level_bits_{
      [](uint32_t s) { return s % 16 == kLevelEscape ? 0 : level_class(s % 16).n_bits; }};
  uint16_t* next_;
  __mmask16 on_[kHalves];
  Vector state_[kHalves], shift_[kHalves];
};

template <size_t kHalves, bool kBlocks>
const uint16_t* decode(LaneArrays* lanes, uint64_t n_steps, uint64_t n_elems, const uint16_t* words,
                       const uint16_t* end) {
  Decoder<kHalves, kBlocks> decoder(lanes, n_elems, words);
  for (uint64_t step = 0; step < n_steps; ++step) {
    if (!decoder.step() || decoder.next() > end) return nullptr;
  }
  return decoder.next();
}

template <size_t kHalves>
uint16_t* encode(LaneCodes* lanes, const uint8_t* steps, uint64_t first, uint64_t last,
                 uint16_t* next) {
  Encoder<kHalves> encoder(lanes, next);
  for (uint64_t number = last; number-- > first;) encoder.step(number, steps[number] != 0);
  return encoder.next();
}

}  // namespace

const uint16_t* decode_lanes_avx512(LaneArrays* lanes, uint64_t n_steps, uint64_t n_elems,
                                    const uint16_t* words, const uint16_t* end) {
  const bool blocks = std::any_of(lanes->block_size, lanes->block_size + lanes->n,
                                  [](uint32_t size) { return size > 0; });
  const auto run = lanes->n <= kWidth ? (blocks ? decode<1, true> : decode<1, false>)
                                      : (blocks ? decode<2, true> : decode<2, false>);
  return run(lanes, n_steps, n_elems, words, end);
}

uint16_t* encode_lanes_avx512(LaneCodes* lanes, const uint8_t* steps, uint64_t first, uint64_t last,
                              uint16_t* next) {
  return (lanes->n <= kWidth ? encode<1> : encode<2>)(lanes, steps, first, last, next);
}

}  // namespace resfed

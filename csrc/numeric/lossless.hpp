// Changes of lossless elements, as their bit patterns show them; docs/format.md, section 5.7.
//
// Optimizers move the weights of a model by steps of about the same size. So how likely a rounded
// weight is to change, and how far its bits move, depends on its exponent, which both ends know
// from the reference. That is why the changes of floats are coded in the order of exponents.
#pragma once

#include "host_device.hpp"
#include "numeric/residual.hpp"

namespace resfed {

RESFED_HD unsigned mantissa_bits_of(DType dtype) {
  return dtype == DType::kFloat32    ? 23
         : dtype == DType::kFloat16  ? 10
         : dtype == DType::kBFloat16 ? 7
                                     : 52;
}

constexpr uint32_t kExponentClasses = 256;

// Counters change alike. So among the levels of integers, the change that the integer before had is
// 1 or -1, by its sign; those between 0 and it move up by one to make room.
struct RepeatedChange {
  int64_t last = 1;  // never 0

  RESFED_HD int64_t level_of(int64_t change) {
    const int64_t one = change < 0 ? -1 : 1;
    const int64_t level = change == last ? one : change + (is_between(change) ? one : 0);
    last = change;
    return level;
  }
  RESFED_HD int64_t change_of(int64_t level) {
    const int64_t one = level < 0 ? -1 : 1;
    if (level == one && (last < 0) == (level < 0)) return last;
    last = level - (is_between(level - one) ? one : 0);
    return last;
  }

 private:
  // Between 0 and the last change.
  RESFED_HD bool is_between(int64_t change) const {
    return last < 0 ? change < 0 && change > last : change > 0 && change < last;
  }
};

// The bit patterns of a tensor's elements.
struct Patterns {
  unsigned n_bits;         // 8, 16, 32 or 64
  unsigned mantissa_bits;  // 0: no float

  RESFED_HD uint64_t mask() const { return ~0ull >> (64 - n_bits); }
  RESFED_HD bool is_negative(uint64_t pattern) const {
    return mantissa_bits > 0 && pattern >> (n_bits - 1) != 0;
  }
  // The exponent; of float64 as that of float32 would be, at most 255. 0 where there is none.
  template <class UInt>
  RESFED_HD uint8_t exponent_class(UInt pattern) const {
    if (mantissa_bits == 0) return 0;
    const auto without_sign = static_cast<UInt>(pattern & static_cast<UInt>(mask() >> 1));
    const auto exponent = static_cast<UInt>(without_sign >> mantissa_bits);
    if (sizeof(UInt) < 8 || n_bits < 64) return static_cast<uint8_t>(exponent);
    constexpr UInt kBias = static_cast<UInt>(1023 - 127);
    return static_cast<uint8_t>(
        min_of<UInt>(max_of(exponent, kBias) - kBias, kExponentClasses - 1));
  }

  // How far a pattern moves: away from zero, for floats, if it is positive. Never 0 if they differ.
  RESFED_HD int64_t change(uint64_t before, uint64_t after) const {
    return as_signed(towards(before, in_order(after) - in_order(before)));
  }
  // The pattern after a change.
  RESFED_HD uint64_t changed(uint64_t before, int64_t change) const {
    const uint64_t distance = towards(before, static_cast<uint64_t>(change));
    return in_order((in_order(before) + distance) & mask());
  }
  RESFED_HD bool is_change(int64_t change) const {
    return change != 0 && change == as_signed(static_cast<uint64_t>(change));
  }

 private:
  // Ascending with the float's value, as a signed number; its own inverse.
  RESFED_HD uint64_t in_order(uint64_t pattern) const {
    return is_negative(pattern) ? pattern ^ mask() >> 1 : pattern;
  }
  RESFED_HD uint64_t towards(uint64_t before, uint64_t distance) const {
    return is_negative(before) ? 0 - distance : distance;
  }
  RESFED_HD int64_t as_signed(uint64_t number) const {
    const unsigned unused = 64 - n_bits;
    return static_cast<int64_t>(number << unused) >> unused;
  }
};

}  // namespace resfed

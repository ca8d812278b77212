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

// What some changes, one after the other, make of the last change before them: for a device, which
// combines runs of changes and does not wait for each.
class LastChange {
 public:
  LastChange() = default;
  RESFED_HD static LastChange any() { return {Kind::kAny, false, 0, 0, 0}; }  // after no change
  RESFED_HD static LastChange is(int64_t change) {
    return {Kind::kTwo, change < 0, 0, change, change};
  }
  // After the change of a level, which depends on the one before.
  RESFED_HD static LastChange after(int64_t level) {
    const int64_t one = level < 0 ? -1 : 1;
    if (level == one) return {Kind::kKept, level < 0, 1, 0, one};
    return {Kind::kTwo, level < 0, magnitude(level), level - one, level};
  }

  RESFED_HD int64_t of(int64_t last) const {
    if (kind_ == Kind::kAny) return last;
    const bool reaches = (last < 0) == negative_ && magnitude(last) >= least_;
    return !reaches ? near_ : kind_ == Kind::kKept ? last : far_;
  }
  RESFED_HD LastChange then(const LastChange& next) const {
    if (kind_ == Kind::kAny) return next;
    if (next.kind_ == Kind::kAny) return *this;
    if (kind_ == Kind::kTwo) {
      return {Kind::kTwo, negative_, least_, next.of(far_), next.of(near_)};
    }
    // Any number with this one's sign: a level of 1 or -1 keeps it.
    return next.negative_ == negative_ && next.least_ > 0 ? next : is(next.near_);
  }

 private:
  // Any last change stays; or those of a sign and a least magnitude do, and others become `near`;
  // or the former become `far`.
  enum class Kind : uint8_t { kAny, kKept, kTwo };
  RESFED_HD LastChange(Kind kind, bool negative, uint64_t least, int64_t far, int64_t near)
      : kind_(kind), negative_(negative), least_(least), far_(far), near_(near) {}
  RESFED_HD static uint64_t magnitude(int64_t change) {
    return change < 0 ? 0 - static_cast<uint64_t>(change) : static_cast<uint64_t>(change);
  }

  Kind kind_;
  bool negative_;
  uint64_t least_;
  int64_t far_, near_;
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

// Nonzeros: a sent element of the lossy tensors, a changed element of the lossless ones. A level of
// either is a signed number, never 0.
#pragma once

#include "host_device.hpp"
#include "numeric/quantize.hpp"

namespace resfed {

// Lossy elements of a payload; more could not be named in a SentSymbol.
constexpr uint64_t kMaxLossyElements = 1ull << 39;

// A sent element: its index among the lossy elements, and its level with the residual's sign. In
// one word, for there are many.
class SentSymbol {
 public:
  static constexpr unsigned kLevelBits = 25;

  SentSymbol() = default;
  RESFED_HD SentSymbol(uint64_t index, int32_t level)
      : packed_(index << kLevelBits | (static_cast<uint32_t>(level) & kLevelMask)) {}

  RESFED_HD uint64_t index() const { return packed_ >> kLevelBits; }
  RESFED_HD int32_t level() const {
    return static_cast<int32_t>(static_cast<uint32_t>(packed_) << kUnused) >> kUnused;
  }
  RESFED_HD void move_up(uint64_t distance) { packed_ += distance << kLevelBits; }

 private:
  static constexpr unsigned kUnused = 32 - kLevelBits;
  static constexpr uint32_t kLevelMask = (1u << kLevelBits) - 1;
  static_assert(kMaxLevel < 1u << (kLevelBits - 1));
  static_assert(kMaxLossyElements == 1ull << (64 - kLevelBits));

  uint64_t packed_;
};

// A changed element: its index among the lossless elements, and how far its bits have moved.
class ChangedElement {
 public:
  ChangedElement() = default;
  RESFED_HD ChangedElement(uint64_t index, int64_t level) : index_(index), level_(level) {}

  RESFED_HD uint64_t index() const { return index_; }
  RESFED_HD int64_t level() const { return level_; }
  RESFED_HD void move_up(uint64_t distance) { index_ += distance; }

 private:
  uint64_t index_;
  int64_t level_;
};

RESFED_HD uint32_t magnitude(int32_t level) {
  return static_cast<uint32_t>(level < 0 ? -level : level);
}
RESFED_HD uint64_t magnitude(int64_t level) {  // of the least level, too
  return level < 0 ? 0 - static_cast<uint64_t>(level) : static_cast<uint64_t>(level);
}

// The largest magnitude of a level.
template <class Nonzero>
constexpr uint64_t kMostLevel = kMaxLevel;
template <>
inline constexpr uint64_t kMostLevel<ChangedElement> = 1ull << 63;

}  // namespace resfed

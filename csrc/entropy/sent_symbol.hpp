// A sent element of the lossy tensors.
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

}  // namespace resfed

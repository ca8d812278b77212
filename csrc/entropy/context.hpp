// Which adaptive probability codes which decision of a change.
//
// The contexts themselves are one table, python/resfed_codec/reference/contexts.py, from which
// contexts_v1.hpp is generated.
#pragma once

#include "host_device.hpp"

namespace resfed {

// The contexts of one kind of decision: an array in C order, whose first one has the number Begin.
template <uint32_t Begin, uint32_t... Sizes>
struct ContextFamily {
  static constexpr uint32_t kBegin = Begin;
  static constexpr uint32_t kEnd = Begin + (1u * ... * Sizes);

  static constexpr uint32_t size(unsigned dimension) {
    constexpr uint32_t kSizes[] = {Sizes...};
    return kSizes[dimension];
  }
  // The number of a context. A unary code takes the one at position 0 and counts up from there.
  template <class... Index>
  RESFED_HD static constexpr uint32_t at(Index... index) {
    uint32_t number = 0;
    ((number = number * Sizes + index), ...);
    return Begin + number;
  }
  // The index into a dimension, or the last that there is.
  template <unsigned Dimension>
  RESFED_HD static uint32_t clamp(uint32_t index) {
    constexpr uint32_t kLast = size(Dimension) - 1;
    return min_of(index, kLast);
  }
};

}  // namespace resfed

// Changes of lossless tensors as binary decisions. One function codes both ways: the Coder is an
// encoder or a decoder.
//
// A Coder has   bool code_bit(uint32_t context, bool bit)   adaptive; an encoder records `bit` and
//                                                         returns it, a decoder ignores it
//               uint32_t code_bypass(uint32_t number, unsigned n_bits)
//                                                         all of the 2^n_bits alike;
//                                                         1 <= n_bits <= kMaxRawBits
// A decoder's numbers are bounded: unary codes end at a limit, with an error.
#pragma once

#include "entropy/context.hpp"
#include "entropy/rans.hpp"
#include "host_device.hpp"

namespace resfed {

// Bits of `value` below its leading one, most significant first; `size` = floor(log2(value)).
template <class Coder>
RESFED_HD uint64_t code_mantissa(Coder& coder, uint64_t value, uint32_t size, uint64_t leading) {
  uint64_t result = leading;
  while (size > 0) {
    const unsigned n_bits = min_of(size, kMaxRawBits);
    size -= n_bits;
    const auto number = static_cast<uint32_t>(value >> size) & ((1u << n_bits) - 1);
    result = result << n_bits | coder.code_bypass(number, n_bits);
  }
  return result;
}

// A changed element of the lossless tensors. `change` is the zigzag code of the difference modulo
// the element's width, hence never 0.
struct Change {
  uint64_t gap;
  uint64_t change;
};

struct LosslessHistory {
  bool scattered = false;  // the last gap was above 1
  bool repeated = false;   // the last change equalled the one before
  uint64_t change = 0;     // 0: none yet
};

template <class Format, class Coder>
RESFED_HD bool code_change(Coder& coder, LosslessHistory& history, Change& c) {
  using Contexts = typename Format::Contexts;
  using Gap = typename Contexts::ChangeGap;
  const uint32_t wanted = floor_log2(c.gap | 1u);
  uint32_t gap_class = 0;
  const uint32_t row = Gap::at(history.scattered ? 1u : 0u, 0u);
  while (coder.code_bit(row + Gap::template clamp<1>(gap_class), gap_class < wanted)) {
    if (++gap_class > Format::kMaxGapClass) return false;
  }
  const uint64_t gap = code_mantissa(coder, c.gap, gap_class, 1);

  bool repeats = history.change != 0 && c.change == history.change;
  if (history.change != 0) {
    repeats = coder.code_bit(Contexts::ChangeRepeat::at(history.repeated ? 1u : 0u), repeats);
  }
  uint64_t change = history.change;
  if (!repeats) {  // size class as a 6-bit tree, then the bits below the leading one
    const uint32_t size = floor_log2(c.change | 1u);
    uint32_t node = 1;
    for (int bit = 5; bit >= 0; --bit) {
      const uint32_t context = Contexts::ChangeSize::at(node);
      node = 2 * node + (coder.code_bit(context, (size >> bit) & 1u) ? 1 : 0);
    }
    change = code_mantissa(coder, c.change, node & 63u, 1);
  }
  c = {gap, change};
  history = {gap > 1, repeats, change};
  return true;
}

}  // namespace resfed

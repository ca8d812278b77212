// Lossless tensors: integers, bool and excluded ones, as changes of bit patterns, so that nothing
// changed costs nothing.
#pragma once

#include <cstring>

#include "cpu/residual.hpp"
#include "entropy/sent_symbol.hpp"
#include "numeric/lossless.hpp"

namespace resfed {

using ChangedElements = std::vector<ChangedElement>;  // their indices ascend

static_assert(std::endian::native == std::endian::little, "elements are copied as they lie");

inline Patterns patterns_of(const Tensor& t) {
  return {8 * t.elem_bytes, t.dtype == DType::kOther ? 0 : mantissa_bits_of(t.dtype)};
}

// Calls use(UInt()) with the unsigned type of an element's width.
template <class Use>
void with_width(uint32_t elem_bytes, Use use) {
  switch (elem_bytes) {
    case 1:
      return use(uint8_t());
    case 2:
      return use(uint16_t());
    case 4:
      return use(uint32_t());
    default:
      return use(uint64_t());
  }
}

// The element as it lies in memory, zero-extended.
inline uint64_t load_element(const void* data, uint64_t element, uint32_t elem_bytes) {
  uint64_t bits = 0;
  with_width(elem_bytes, [&](auto narrow) {
    std::memcpy(&narrow, static_cast<const uint8_t*>(data) + element * sizeof narrow,
                sizeof narrow);
    bits = narrow;
  });
  return bits;
}

inline void store_element(void* data, uint64_t element, uint32_t elem_bytes, uint64_t bits) {
  with_width(elem_bytes, [&](auto narrow) {
    narrow = static_cast<decltype(narrow)>(bits);
    std::memcpy(static_cast<uint8_t*>(data) + element * sizeof narrow, &narrow, sizeof narrow);
  });
}

// Walks changes and members together: visit(member, element, which).
template <class Visit>
void for_each_change(const Group& group, const ChangedElements& changes, Visit visit) {
  size_t at = 0;
  for (size_t i = 0; i < changes.size(); ++i) {
    const uint64_t index = changes[i].index();
    while (index - group.members[at].begin >= group.members[at].tensor->n_elems) ++at;
    visit(group.members[at], index - group.members[at].begin, i);
  }
}

ChangedElements find_changes(const Group& group);

// Changes as the levels that are coded, and back.
ChangedElements levels_of(const Group& group, ChangedElements changes);
ChangedElements changes_of(const Group& group, ChangedElements levels);

// The same changes with indices in the order of the reference's exponents, and back.
ChangedElements in_exponent_order(const Group& group, ChangedElements changes);
ChangedElements in_element_order(const Group& group, ChangedElements changes);

// New bit patterns, one per change; throws kBadSlice when a change does not fit its element's
// width.
struct RestoredElements {
  ElementBits bits;
  uint32_t check = 0;
};
RestoredElements restore_changes(const Group& group, const ChangedElements& changes);

void write_changes(const Group& group, const ChangedElements& changes,
                   const RestoredElements& restored);

}  // namespace resfed

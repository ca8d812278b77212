// Lossless tensors: integers, bool and excluded ones, as differences of bit patterns modulo
// their width, so that nothing changed costs nothing.
#pragma once

#include <cstring>

#include "cpu/residual.hpp"

namespace resfed {

// A changed element: its index among all lossless elements, and the zigzag code of its change.
struct ChangedElement {
  uint64_t index;
  uint64_t change;
};

static_assert(std::endian::native == std::endian::little, "elements are copied as they lie");

// The element as it lies in memory, zero-extended.
inline uint64_t load_element(const void* data, uint64_t element, uint32_t elem_bytes) {
  uint64_t bits = 0;
  std::memcpy(&bits, static_cast<const uint8_t*>(data) + element * elem_bytes, elem_bytes);
  return bits;
}

// Walks sorted changes and members together: visit(member, element, which).
template <class Visit>
void for_each_change(const Group& group, const std::vector<ChangedElement>& changes, Visit visit) {
  size_t at = 0;
  for (size_t i = 0; i < changes.size(); ++i) {
    while (changes[i].index - group.members[at].begin >= group.members[at].tensor->n_elems) ++at;
    visit(group.members[at], changes[i].index - group.members[at].begin, i);
  }
}

std::vector<ChangedElement> find_changes(const Group& group);

// New bit patterns, one per change; throws kBadSlice when a change does not fit its element's
// width.
struct RestoredElements {
  ElementBits bits;
  uint32_t check = 0;
};
RestoredElements restore_changes(const Group& group, const std::vector<ChangedElement>& changes);

void write_changes(const Group& group, const std::vector<ChangedElement>& changes,
                   const RestoredElements& restored);

}  // namespace resfed

// The lossless part: integers, bool and excluded tensors, as differences of bit patterns modulo
// their width, so that nothing changed costs nothing.
#pragma once

#include "cpu/residual.hpp"

namespace resfed {

// A changed element: its place among all lossless elements, and the zigzag code of its change.
struct ChangedElement {
  uint64_t index;
  uint64_t change;
};

std::vector<ChangedElement> find_changes(const Group& group);

// New bit patterns, one per change; throws kBadSlice when a change does not fit its element's
// width.
struct RestoredElements {
  std::vector<uint64_t> bits;
  uint32_t check = 0;
};
RestoredElements restore_changes(const Group& group, const std::vector<ChangedElement>& changes);

void write_changes(const Group& group, const std::vector<ChangedElement>& changes,
                   const RestoredElements& restored);

}  // namespace resfed

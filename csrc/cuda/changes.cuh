// What becomes of changes of lossless tensors on a device: levels of integers and back, new bit
// patterns, and the writes.
#pragma once

#include "cuda/exponent_order.cuh"

namespace resfed::cuda {

// Changes of integers to levels, or back: each depends on the one before.
constexpr uint32_t kRunOfChanges = 64;  // that one thread takes
struct ChangeRuns {
  LastChange* of;  // one for each run
  int64_t* lasts;  // the last change of an integer before it
  uint64_t n;
};
void change_integers(const Stage& stage, const ExponentOrder& order, ChangeList changes,
                     ChangeRuns runs, bool decodes);

// The changed elements' new bit patterns, and the reference check. Changes that do not fit their
// elements damage a decoder's slice, of so many changes; an encoder has read an unsteady model.
void restore_elements(const Stage& stage, ChangeList changes, Partition p, bool decodes,
                      uint64_t* bits);

// The reference, where it is wanted and not there yet, and over it what has changed.
void write_unchanged(const Stage& stage);
void write_changed(const Stage& stage, ChangeList changes, const uint64_t* bits);

}  // namespace resfed::cuda

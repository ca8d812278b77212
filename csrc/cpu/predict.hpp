// Predictions and error feedback on the CPU, a batch of elements at a time: a prediction is never
// an array as large as the model unless it is written to `out`.
#pragma once

#include "cpu/quantize.hpp"
#include "format/groups.hpp"

namespace resfed {

// Elements worked on at once: a few arrays of this length stay in the first-level cache.
constexpr size_t kBatch = 1024;

// Residuals of n <= kBatch elements from `first` on, feedback included. Whether no difference was
// infinite or NaN; else some residuals may be.
bool residual_batch(const Tensor& tensor, uint64_t first, size_t n, float* residuals);

// Fills every `out` with its prediction, ready for the recovered values to be written over it.
void write_predictions(const Groups& groups);

// What the sent elements of a group still lack; empty where no tensor has feedback.
Scratch<float> left_of_sent(const Group& group, SentSymbols sent, const Recovered& recovered);

// Where a tensor has feedback: what the recovered model still lacks becomes the new feedback. Reads
// the history, so it comes before anything is written to an `out`. `left` is the group's
// left_of_sent().
void update_feedback(const Group& group, SentSymbols sent, const Scratch<float>& left);

}  // namespace resfed

// Stage 3 on the CPU: from selected residuals to levels, and from levels to recovered values.
#pragma once

#include "core/exact_sum.hpp"
#include "core/quantize.hpp"
#include "cpu/residual.hpp"

namespace resfed {

// One group's part of a payload, as integers. Level signs are the residuals' signs.
struct SentElement {
  uint32_t offset;  // in its segment
  int32_t level;
};
using SentSegments = std::vector<std::vector<SentElement>>;

// Threshold and step for a selection that is not empty.
Quantizer fit_quantizer(const Segments& selected, const StepRule& rule);

// Levels of all selected residuals; completes the quantizer with the means found.
SentSegments quantize_all(const Segments& selected, Quantizer* quantizer);

// Calls visit(piece, element in the piece, which of the sent) for the sent elements of a segment.
template <class Visit>
void for_each_sent(const Group& group, uint64_t segment, const std::vector<SentElement>& sent,
                   Visit visit) {
  size_t i = 0;
  for_each_part(group, segment, [&](const Piece& piece, uint64_t first, uint64_t n, uint32_t at) {
    for (; i < sent.size() && sent[i].offset - at < n; ++i) {
      visit(piece, first + (sent[i].offset - at), i);
    }
  });
}

// What the sent elements become, as bit patterns beside the levels, and the group's part of the
// reference check. All of it is computed before anything is written: `out` may be the reference,
// and tied tensors may share memory.
struct Recovered {
  std::vector<std::vector<uint64_t>> bits;
  uint32_t check = 0;
};

// Where `error` is not null it receives the squares of what remains of the sent residuals.
Recovered recover_all(const Group& group, const SentSegments& sent, const Quantizer& quantizer,
                      ExactSquares* error);

// Writes to every tensor that has an `out`.
void write_recovered(const Group& group, const SentSegments& sent, const Recovered& recovered);

// Squares of the unscaled residuals: of the whole group, and of a selection.
ExactSquares residual_squares(const Group& group);
ExactSquares residual_squares(const Group& group, const Segments& selected);

}  // namespace resfed

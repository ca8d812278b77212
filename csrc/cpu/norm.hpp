// A bound on the L2 norm of what an update changes, as differential privacy needs it.
#pragma once

#include <functional>

#include "cpu/encoder.hpp"

namespace resfed {

// A group that is sent. Both functions use the quantizer of `coded`.
struct SentGroup {
  EncodedGroup* coded;
  std::function<ExactSquares()> change_squares;  // of elements that change, each rounded up
  std::function<void()> recover;
};

// Lowers the quantizers of all groups by one factor until the recovered model differs from the
// prediction by max_norm at most, and recovers the groups again. Returns false if no factor was
// found: then nothing is sent any more. Throws kLosslessChange. `matrices` are those of another
// backend.
bool limit_norm(EncodeState* state, double max_norm, const SentGroup& matrices);
bool limit_norm(EncodeState* state, double max_norm);

}  // namespace resfed

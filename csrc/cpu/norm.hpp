// A bound on the L2 norm of what an update changes, as differential privacy needs it.
#pragma once

#include "cpu/encoder.hpp"

namespace resfed {

// Lowers the quantizers of all groups by one factor until the recovered model differs from the
// prediction by max_norm at most, and recovers the groups again. Returns false if no factor was
// found: then nothing is sent any more. Throws kLosslessChange.
bool limit_norm(EncodeState* state, double max_norm);

}  // namespace resfed

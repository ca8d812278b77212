// Stage 2 on the CPU: exact top-k without sorting or copying the model.
//
// A threshold is estimated from a sample, a little low; one pass collects what lies above it; the
// exact k are chosen among those. If the sample misled, a histogram of all keys gives the exact
// threshold. The answer is the same either way: selection is defined by core/select.hpp.
#pragma once

#include "cpu/residual.hpp"

namespace resfed {

// The k largest of the group (fewer if fewer residuals differ from zero). Throws kNonFinite, also
// when k is 0.
Segments select_top(const Group& group, uint64_t k);

// The k largest among candidates, which must hold the group's k largest. Consumes them.
Segments keep_top(Segments candidates, uint64_t k);

}  // namespace resfed

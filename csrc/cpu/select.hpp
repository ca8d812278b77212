// Stage 2 on the CPU: exact top-k without sorting or copying the model.
//
// A threshold is estimated from a sample, a little low; one pass collects what lies above it; the
// exact k are chosen among those. Where more elements lie on the estimate than there is room for,
// it is the threshold: one pass collects what lies above it, and the first of its ties fill up the
// k. If the sample misled, a histogram of all keys gives the exact threshold. The answer is the
// same any way: selection is defined by numeric/select.hpp.
//
// Only collect() copies what it sees. Where two looks at the model must agree and do not, because
// another thread writes to it, these throw kChangedDuringCall.
#pragma once

#include "cpu/residual.hpp"

namespace resfed {

// The k largest of the group (fewer if fewer residuals differ from zero). Throws kNonFinite, also
// when k is 0, and kChangedDuringCall.
CandidateChunks select_top(const Group& group, uint64_t k);

// The k largest among candidates, which must hold the group's k largest. Consumes them.
CandidateChunks keep_top(CandidateChunks candidates, uint64_t k);

}  // namespace resfed

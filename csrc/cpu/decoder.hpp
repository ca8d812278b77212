// The part of decoding that decode and aggregation share: everything up to the first write.
#pragma once

#include "cpu/groups.hpp"
#include "cpu/lossless.hpp"
#include "cpu/quantize.hpp"

namespace resfed {

// A payload that belongs to its reference, and what it makes of the elements it touches.
struct Update {
  std::vector<Tensor> tensors;  // with the roles that the payload's exclusions give them
  Groups groups;                // point into `tensors`
  SentSegments sent_matrix, sent_vector;
  Recovered matrix, vector;
  std::vector<ChangedElement> changes;
  RestoredElements restored;
};

// `tensors` have the roles of a payload without exclusions. Throws Failure.
Update read_update(const uint8_t* payload, size_t n_bytes, uint64_t digest,
                   std::vector<Tensor> tensors);

}  // namespace resfed

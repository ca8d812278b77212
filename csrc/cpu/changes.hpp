// Changed elements of the lossless tensors to slices and back. Encoders write the current format.
#pragma once

#include "cpu/lossless.hpp"
#include "format/frame.hpp"

namespace resfed {

using Slice = std::vector<uint8_t>;

std::vector<Slice> encode_changes(const std::vector<ChangedElement>& changes);
// Indices come out strictly ascending and below the number of elements; else kBadSlice.
std::vector<ChangedElement> decode_changes(const uint8_t* payload, const Frame& frame);

}  // namespace resfed

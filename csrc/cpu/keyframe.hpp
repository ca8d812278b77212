// Keyframes on the CPU: a model's tensors to bytes and back, one task per chunk of 65,536 elements.
//
//   [4 bytes] magic "RFK" and version   [8] layout digest
//   [varints] table: for each chunk, for each byte plane from the top, how it is coded
//   byte planes   [4] CRC-32C of all before
//
// Hostile input: how many byte planes there are, and how long they are when decoded, follows from
// the caller's tensors alone. The payload has only how many bytes each of them takes, and that is
// checked against the bytes that are there.
#pragma once

#include "api.hpp"

namespace resfed {

constexpr uint8_t kKeyframeMagic[3] = {'R', 'F', 'K'};
constexpr uint8_t kKeyframeVersion = 1;

// Of each tensor `current` is read. Floats, which are those whose role is not kLossless, are
// rounded to `mantissa_bits` explicit mantissa bits; kMaxMantissaBits rounds nothing.
std::vector<uint8_t> encode_keyframe(const std::vector<Tensor>& tensors, uint64_t layout_digest,
                                     unsigned mantissa_bits);

// Of each tensor `out` is written. Throws Failure; then some of it may have been written already,
// so `out` must be memory that no other code reads yet.
void decode_keyframe(const uint8_t* payload, size_t n_bytes, uint64_t layout_digest,
                     const std::vector<Tensor>& tensors);

}  // namespace resfed

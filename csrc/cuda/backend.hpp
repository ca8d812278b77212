// encode() and decode() of api.hpp for tensors on a CUDA device: the same bytes, the same model.
//
// Tensors, terms, outputs and feedback are addresses on `device`; calls come in order after what
// `stream` holds, and what they write is written in its order. Calls on one device take turns.
#pragma once

#include "api.hpp"
#include "cuda/device.hpp"

namespace resfed::cuda {

// Waits for the stream once, or once more where many residuals are equal. Throws Failure.
std::vector<uint8_t> encode(const std::vector<Tensor>& tensors, const EncodeOptions& options,
                            int device, Stream stream);

// All or nothing. Waits for the stream once. Throws Failure.
void decode(const uint8_t* payload, size_t n_bytes, uint64_t digest,
            const std::vector<Tensor>& tensors, int device, Stream stream);

// Frees what calls keep for the next ones, on all devices.
void release_workspace();

}  // namespace resfed::cuda

// encode() and decode() of api.hpp for tensors on a CUDA device: the same bytes, the same model.
// Matrices and lossless tensors, which are nearly all of a model, stay on the device; vectors,
// dense tensors and lossless ones of few elements are copied to the host and coded there, while the
// device selects among the matrices.
//
// Tensors, terms, outputs and feedback are addresses on `device`; calls come in order after what
// `stream` holds, and what they write is written in its order. Calls on one device take turns.
#pragma once

#include "api.hpp"
#include "cuda/device.hpp"

namespace resfed::cuda {

// Waits for the stream up to four times; once more where very many residuals are equal, and up to
// five times more for lossless tensors; with max_bytes and max_error up to four times for each try;
// with max_norm once for each attempt, and once to recover. Throws Failure.
// All or nothing, as in api.hpp, but for what a device reports while results are written.
std::vector<uint8_t> encode(const std::vector<Tensor>& tensors, const EncodeOptions& options,
                            int device, Stream stream,
                            const BeforeWriting& before_writing = nullptr);

// changed() of api.hpp. Waits for the stream once. Throws Failure.
std::vector<bool> changed(const std::vector<Tensor>& tensors, int device, Stream stream);

// All or nothing. Waits for the stream once, and once more for lossless tensors. Throws Failure.
void decode(const Payload& payload, uint64_t digest, const std::vector<Tensor>& tensors, int device,
            Stream stream, const std::function<void()>& before_writing = nullptr);

}  // namespace resfed::cuda

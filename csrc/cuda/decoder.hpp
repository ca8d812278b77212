// What decode and aggregation share: a payload, decoded and verified. No CUDA headers.
#pragma once

#include <optional>

#include "cpu/decoder.hpp"
#include "cuda/lossless.hpp"
#include "cuda/pipeline.hpp"
#include "cuda/staging.hpp"

namespace resfed::cuda {

// Which tensors the device codes.
struct OnDevice {
  bool matrices, lossless;

  explicit OnDevice(const Groups& groups)
      : matrices(groups.matrix.n_elems > 0),
        lossless(groups.lossless.n_elems >= kLeastLosslessElems) {}
  bool operator()(const Tensor& t) const {
    return (matrices && t.role == Role::kMatrix) || (lossless && t.role == Role::kLossless);
  }
};

struct DecodedUpdate {
  // Waits for the stream as cuda::decode() does. Throws Failure.
  DecodedUpdate(WorkspaceLease& lease, const Payload& payload, uint64_t digest,
                const std::vector<Tensor>& tensors);

  void write();  // starts to

  Update update;
  OnDevice on_device;
  Staging staging;  // of the other tensors
  std::optional<MatrixDecoder> matrices;
  std::optional<LosslessDecoder> lossless;
  Recovered vector, dense;
};

}  // namespace resfed::cuda

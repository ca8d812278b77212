// The lossless tensors of a model, coded on the device. No CUDA headers.
//
// Calls of one object come in the order in which they stand here.
#pragma once

#include "cpu/encoder.hpp"
#include "cuda/workspace.hpp"

namespace resfed::cuda {

// Where the device codes lossless tensors: fewer elements take the host less time than the launches
// for them.
constexpr uint64_t kLeastLosslessElems = 4096;

struct NewElements;
struct LosslessPlan;  // addresses in the workspace, and what launches need

class LosslessEncoder {
 public:
  // `group` has device addresses and at least one element.
  LosslessEncoder(WorkspaceLease& lease, const Group& group, unsigned lane_log2);
  ~LosslessEncoder();

  // What uses the lease's pinned memory must have ended. Throws kChangedDuringCall.
  EncodedChanges encode();

  void write();  // recovered tensors

 private:
  WorkspaceLease& lease_;
  const Group& group_;
  unsigned lane_log2_;
  std::unique_ptr<LosslessPlan> plan_;
};

class LosslessDecoder {
 public:
  // `group` has device addresses and at least one element.
  LosslessDecoder(WorkspaceLease& lease, const Group& group, const Payload& payload);
  ~LosslessDecoder();

  // Returns the group's part of the reference check. What uses the lease's pinned memory must have
  // ended. Throws kBadTables, kBadSlice, kChangedDuringCall.
  uint32_t decode();

  NewElements restored() const;  // until the workspace is leased again

  void write();

 private:
  WorkspaceLease& lease_;
  const Group& group_;
  const Payload& payload_;
  std::unique_ptr<LosslessPlan> plan_;
};

}  // namespace resfed::cuda

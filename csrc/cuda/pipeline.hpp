// The matrices of a model, coded on the device. No CUDA headers.
//
// Calls of one object come in the order in which they stand here. What start() begins goes on while
// the host codes the other groups.
#pragma once

#include "cpu/encoder.hpp"
#include "cuda/workspace.hpp"

namespace resfed::cuda {

struct MatrixPlan;  // addresses in the workspace, and what launches need
struct Progress;

class MatrixEncoder {
 public:
  // `group` has device addresses and at least one element.
  MatrixEncoder(WorkspaceLease& lease, const Group& group, const EncodeOptions& options);
  ~MatrixEncoder();

  void start(uint64_t most_others);  // nonzeros of other groups there may be at most

  struct Result {
    uint64_t k = 0;
    Quantizer quantizer;
    uint32_t check = 0;
    std::vector<uint8_t> tables;
    SliceViews slices;  // until the workspace is leased again
  };
  // With the nonzeros of the other groups behind the matrices'. Throws kNonFinite.
  Result finish(SentSymbols vector, SentSymbols dense, const MatrixShapes& matrices);

  void write();  // recovered tensors and feedback

 private:
  void prepare();
  void select();
  void begin(const Progress& progress);

  WorkspaceLease& lease_;
  const Group& group_;
  const EncodeOptions& options_;
  std::unique_ptr<MatrixPlan> plan_;
};

class MatrixDecoder {
 public:
  // `group` has device addresses and at least one element.
  MatrixDecoder(WorkspaceLease& lease, const Group& group, const Payload& payload);
  ~MatrixDecoder();

  void start();  // throws kBadTables

  struct Result {
    uint32_t check = 0;
    SentSymbols others;  // of the other groups, until the workspace is leased again
  };
  Result finish();  // throws kBadSlice

  void write();

 private:
  WorkspaceLease& lease_;
  const Group& group_;
  const Payload& payload_;
  std::unique_ptr<MatrixPlan> plan_;
};

}  // namespace resfed::cuda

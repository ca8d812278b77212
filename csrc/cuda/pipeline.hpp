// The matrices of a model, coded on the device. No CUDA headers.
//
// Calls of one object come in the order in which they stand here. What start() begins goes on while
// the host codes the other groups.
#pragma once

#include "cpu/scan.hpp"
#include "cuda/workspace.hpp"

namespace resfed::cuda {

struct MatrixPlan;  // addresses in the workspace, and what launches need
struct Progress;

class MatrixEncoder {
 public:
  // `group` has device addresses and at least one element.
  MatrixEncoder(WorkspaceLease& lease, const Group& group, const EncodeOptions& options);
  ~MatrixEncoder();

  void start();

  struct Result {
    Quantizer quantizer;
    uint32_t check = 0;
    SentSymbols sent;  // until the workspace is leased again
  };
  Result finish();  // throws kNonFinite

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

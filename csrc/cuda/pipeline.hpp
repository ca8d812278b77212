// The matrices of a model, coded on the device. No CUDA headers.
//
// What start() begins goes on while the host codes the other groups.
#pragma once

#include "cpu/encoder.hpp"
#include "cuda/workspace.hpp"

namespace resfed::cuda {

struct MatrixPlan;  // addresses in the workspace, and what launches need
struct Progress;
struct NewElements;

struct CodedNonzeros {
  std::vector<uint8_t> tables;
  SliceViews slices;  // until the next call
};

class MatrixEncoder {
 public:
  // `group` has device addresses and at least one element. `others`: how many nonzeros of other
  // groups there may be. With max_bytes or max_error elements may be selected several times.
  MatrixEncoder(WorkspaceLease& lease, const Group& group, const EncodeOptions& options,
                uint64_t most_others);
  ~MatrixEncoder();

  void start(uint64_t k);  // to select the best k elements
  struct Selected {
    uint64_t k = 0;  // really sent
    Quantizer quantizer;
    uint32_t check = 0;
  };
  Selected finish();  // throws kNonFinite

  // For max_error: squares of all residuals, and of what remains of these behind a selection.
  ExactSquares residual_squares(Changes* float64_changes);
  ExactSquares remaining(const ExactSquares& all);

  // For max_norm: squares of what a selection changes with another quantizer, each rounded up; and
  // recovers it with that quantizer. Returns the reference check.
  ExactSquares change_squares(const Quantizer& quantizer);
  uint32_t recover(const Quantizer& quantizer);

  // With the nonzeros of the other groups behind the matrices'.
  CodedNonzeros code(SentSymbols vector, SentSymbols dense, const MatrixShapes& matrices);

  void write();  // recovered tensors and feedback

 private:
  void prepare();
  void select();
  void select_again();
  void begin(const Progress& progress);
  template <class Add>
  ExactSquares sum_from(const ExactSquares& from, Add add);

  WorkspaceLease& lease_;
  const Group& group_;
  StepRule rule_;
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

  // Of tensors that have an output; until the workspace is leased again.
  NewElements recovered() const;

  void write();

 private:
  WorkspaceLease& lease_;
  const Group& group_;
  const Payload& payload_;
  std::unique_ptr<MatrixPlan> plan_;
};

}  // namespace resfed::cuda

// The matrices of a model, coded on the device. No CUDA headers.
//
// Calls of one object come in the order in which they stand here. What start() begins goes on while
// the host codes the other groups.
#pragma once

#include <span>
#include <vector>

#include "cuda/workspace.hpp"
#include "format/groups.hpp"

namespace resfed::cuda {

struct MatrixPlan;  // addresses in the workspace, and what launches need
struct Progress;

class MatrixEncoder {
 public:
  // `group` has device addresses and at least one element.
  MatrixEncoder(WorkspaceLease& lease, const Group& group, const EncodeOptions& options);
  ~MatrixEncoder();

  void start(uint64_t n_others);  // symbols of other groups there may be at most

  struct Result {
    uint64_t k = 0;
    Quantizer quantizer;
    uint32_t check = 0;
    std::vector<std::span<const uint8_t>> slices;  // until the workspace is leased again
  };
  // With the symbols of the other groups behind the matrices'. Throws kNonFinite.
  Result finish(std::span<const SentSymbol> vector, std::span<const SentSymbol> dense,
                std::span<const RowLength> rows);

  void write();  // recovered tensors and feedback

 private:
  void prepare(bool keeps_symbols);
  void select();
  void begin(const Progress& progress);
  void make_room(const Progress& found);

  WorkspaceLease& lease_;
  const Group& group_;
  const EncodeOptions& options_;
  std::unique_ptr<MatrixPlan> plan_;
};

class MatrixDecoder {
 public:
  // `group` has device addresses and at least one element; `slices` are the lossy ones.
  MatrixDecoder(WorkspaceLease& lease, const Group& group, const Frame& frame,
                const uint8_t* slices);
  ~MatrixDecoder();

  void start();

  struct Result {
    uint32_t check = 0;
    std::span<const SentSymbol> others;  // of the other groups, until the workspace is leased again
  };
  Result finish();  // throws kBadSlice

  void write();

 private:
  WorkspaceLease& lease_;
  const Group& group_;
  const Frame& frame_;
  const uint8_t* slices_;
  std::unique_ptr<MatrixPlan> plan_;
};

}  // namespace resfed::cuda

// The host's side of scan orders: it gathers the nonzeros of all groups for the kernels of scan.cu,
// and writes what these chose.
#pragma once

#include "cpu/scan.hpp"
#include "cuda/scan.cuh"
#include "cuda/workspace.hpp"

namespace resfed::cuda {

class ScanCoder {
 public:
  ScanCoder(WorkspaceLease& lease, const Group& matrices);

  // Takes its memory on the device.
  void take(BumpAllocator& allocator, uint64_t most_symbols);

  // Brings n symbols of the matrices, which lie on the device, into scan order, and those of the
  // other groups behind them. `other` has room for n symbols. What uses the lease's pinned memory
  // must have ended.
  void order(const Stage& stage, const SentSymbol* symbols, uint64_t n, SentSymbols vector,
             SentSymbols dense, const MatrixShapes& matrices, SentSymbol* other);
  const SentSymbol* sent() const { return sent_; }
  MatrixList matrices() const { return {buffers_.matrices, buffers_.n_matrices}; }

  // What the kernels chose: starts to copy it to pinned memory, and writes it from there.
  void take_results(BumpAllocator& pinned);
  void copy_out();
  void write(BitWriter* tables) const;

 private:
  WorkspaceLease& lease_;
  MatrixShapes shapes_;
  std::vector<LinePlan> plans_;  // one for each matrix
  // On the device.
  SentSymbol* sent_ = nullptr;
  ScanBuffers buffers_{};
  // Pinned.
  ScanChoice* choices_ = nullptr;
  uint32_t* occurs_ = nullptr;
  uint8_t* flips_ = nullptr;
};

}  // namespace resfed::cuda

// The state of encode() on the CPU, for backends that leave some of the groups to it.
#pragma once

#include <span>

#include "cpu/lanes.hpp"
#include "cpu/lossless.hpp"
#include "cpu/quantize.hpp"
#include "cpu/select.hpp"

namespace resfed {

// One group on its way into the payload.
struct EncodedGroup {
  uint64_t k = 0;  // really sent
  Quantizer quantizer;
  Scratch<SentSymbol> sent;
  Recovered recovered;
  Scratch<float> left;  // of sent residuals; see prepare_results
};

// The lossless group likewise.
struct EncodedChanges {
  uint64_t n = 0;
  uint64_t first_tensor = 0;  // that has one, among all of the call
  uint32_t check = 0;
  CodedLanes coded;
};

struct EncodeState {
  Groups groups;  // point into the tensors of the call
  Frame frame;    // without what the groups send
  MatrixShapes matrices;
  EncodedChanges lossless;
  ChangedElements changes;    // of the lossless group, as the CPU has found them
  RestoredElements restored;  // the same
  EncodedGroup matrix, vector, dense;
};

// Everything but matrices, vectors and lossless tensors. Throws Failure.
EncodeState begin_encoding(const std::vector<Tensor>& tensors, const EncodeOptions& options);

void code_lossless(EncodeState* state);

// The group's best k elements for any k. Reads the model again only when k exceeds that of the
// cached candidates.
class CachedSelection {
 public:
  explicit CachedSelection(const Group& group) : group_(group) {}
  CandidateChunks top(uint64_t k);

 private:
  const Group& group_;
  CandidateChunks candidates_{0};
  uint64_t k_cached_ = 0;
  bool cached_ = false;
};

// A selection, coded; but for what is recovered. Throws Failure.
EncodedGroup quantize_group(const Group& group, const CandidateChunks& selected,
                            const StepRule& rule);
void recover_group(const Group& group, EncodedGroup* coded, ExactSquares* error);
// Both, of the group's best k elements, and of the fewest within an error bound.
EncodedGroup code_top(const Group& group, uint64_t k, const StepRule& rule);
EncodedGroup code_within_error(const Group& group, StepRule rule, double max_error);

// Matrices and vectors as the options want them, after the other groups. Throws Failure.
CodedLanes code_lossy(const EncodeOptions& options, EncodeState* state);

// The nonzeros of all groups, coded; nothing if they take more than max_bytes.
std::optional<CodedLanes> code_nonzeros(const EncodeState& state,
                                        uint64_t max_bytes = ~uint64_t{0});
// The payload, given those.
using SliceViews = std::vector<std::span<const uint8_t>>;
std::vector<uint8_t> assemble(const EncodeState& state, const std::vector<uint8_t>& tables,
                              const SliceViews& slices);
std::vector<uint8_t> assemble(const EncodeState& state, const CodedLanes& nonzeros);

// What is left to compute; after it nothing can fail.
void prepare_results(EncodeState* state);

// Recovered tensors and feedback of all groups to where they are wanted.
void write_results(const EncodeState& state);

}  // namespace resfed

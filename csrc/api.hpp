// The stages' common vocabulary on the host: tensors as pointer, length, dtype; options; results.
//
// Ownership: pointers are borrowed for the call. `current`, `reference` and terms are only read and
// may be the same memory; `out` may equal `reference` (every new value is computed before the first
// is written) but must not overlap terms. All functions are reentrant; parallelism inside a call
// never changes a result.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "format/link.hpp"
#include "numeric/predict.hpp"
#include "numeric/quantize.hpp"
#include "status.hpp"

namespace resfed {

enum class Role : uint8_t {
  kMatrix = 0,    // lossy, two or more dimensions
  kVector = 1,    // lossy, scaled per tensor: biases, norms
  kLossless = 2,  // integers, bool, excluded tensors
  kDense = 3,     // lossy, scaled per tensor, all of it in the payload: running statistics
};

struct Tensor {
  const void* current = nullptr;    // encode only
  const void* reference = nullptr;  // the prediction, unless `prediction` has terms
  void* out = nullptr;              // receives the recovered tensor; may be null
  uint64_t n_elems = 0;
  uint32_t elem_bytes = 4;  // 1, 2, 4 or 8
  DType dtype = DType::kFloat32;
  Role role = Role::kMatrix;
  uint64_t row_length = 0;    // of a tensor of two dimensions; 0: of any other
  Prediction prediction;      // of lossy tensors
  float* feedback = nullptr;  // encode of matrices and vectors: added to the residual, then
                              // replaced by what is left of it; may be null

  bool plain() const { return prediction.n_terms == 0 && feedback == nullptr; }
};

struct EncodeOptions {
  uint64_t digest = 0;    // of the layout, or of what the link names
  std::string link;       // carried as it is; docs/format.md has its content
  uint64_t k_matrix = 0;  // the target when neither of the two below is set
  uint64_t k_vector = 0;
  uint64_t max_bytes = 0;     // 0: no bound
  double max_error = -1.0;    // < 0: no bound
  double max_norm = 0.0;      // of what is recovered minus the prediction; 0: no bound
  uint64_t vector_share = 1;  // with max_bytes: vectors are sent this many times as densely
  StepRule step;
  unsigned dense_bits = 3;  // of dense tensors: steps are 2^(2 - dense_bits) of their scale
  unsigned lane_log2 = kDefaultLaneLog2;
  std::vector<uint64_t> exclusions;  // for the frame; those tensors have role kLossless
  std::vector<uint64_t> dense;       // for the frame; those tensors have role kDense
  std::vector<uint64_t> blocks;  // of each tensor, elements that tend to be sent together; 0: none
};

// Of each tensor, whether it is a matrix or vector of which any residual differs from zero.
std::vector<bool> changed(const std::vector<Tensor>& tensors);

// Called with the finished payload before any output is written. If it throws, nothing is written
// and the caller gets the exception.
using BeforeWriting = std::function<void(const std::vector<uint8_t>& payload)>;

// Throws Failure. On success the recovered tensors stand in `out` where that is not null. All or
// nothing: throws before the first write to any `out` or feedback.
std::vector<uint8_t> encode(const std::vector<Tensor>& tensors, const EncodeOptions& options,
                            const BeforeWriting& before_writing = nullptr);

// A payload whose checksum, frame and link are verified and read: once for all that is done with
// it. Its bytes are borrowed.
struct Payload {
  const uint8_t* data = nullptr;
  size_t n_bytes = 0;
  Frame frame;
  std::optional<Link> link;  // of a payload of a stream

  const uint8_t* slices() const { return data + frame.slices_offset; }
};

// Reads a payload for a layout of n_tensors, which bounds the lists in it; kMostTensors where there
// is none. A payload without a link must have the layout's digest, if that is given; this is
// checked before the lists. Throws Failure.
Payload open_payload(const uint8_t* data, size_t n_bytes, uint64_t n_tensors = kMostTensors,
                     std::optional<uint64_t> layout_digest = std::nullopt);

// All or nothing: throws Failure before the first write to any `out`. The tensors have the roles of
// a payload without exclusions and dense tensors. `digest` is the one that the payload must have.
// `before_writing` as above.
void decode(const Payload& payload, uint64_t digest, const std::vector<Tensor>& tensors,
            const std::function<void()>& before_writing = nullptr);

// Adds the dequantized values of a payload of one's own to the tensors' feedback: what it would
// have contributed. Matrices and vectors have feedback. Throws Failure before the first write, also
// where the payload's counts are not those of the tensors; its digest is not checked.
void add_values(const Payload& payload, const std::vector<Tensor>& tensors);

// For a fit of coefficients: of each lossy tensor, with f[0] its residuals and f[1 + j] =
// term[j] - term[last], the sums over its elements of f[a] f[b] for a <= b, row by row. Float64
// sums in the order that docs/format.md, section 11.5, fixes. Empty for other tensors.
std::vector<std::vector<double>> moments(const std::vector<Tensor>& tensors);

int num_threads();
void set_num_threads(int n);  // n >= 1

}  // namespace resfed

// What the kernels of the matrices' pipeline share: the tensors, the chunks, and a record in device
// memory through which stages pass results without the host.
#pragma once

#include "cuda/group.cuh"
#include "cuda/lanes.hpp"
#include "cuda/launch.cuh"
#include "numeric/exact_sum.hpp"
#include "numeric/predict.hpp"
#include "numeric/select.hpp"

namespace resfed::cuda {

// Where a chunk's candidates lie, and what becomes of them.
struct Chunk {
  uint64_t first_candidate;
  uint32_t n_candidates;
  uint32_t n_above;       // of them, above the threshold
  uint32_t n_equal;       // ... and equal to it
  uint32_t ties_to_keep;  // of the equal elements, the first so many, in an exact collection
};
// How many of a chunk's n_equal are sent, after `before` others.
__device__ inline uint32_t ties_to_keep(uint64_t ties, uint64_t before, uint32_t n_equal) {
  return static_cast<uint32_t>(min_of<uint64_t>(ties - min_of(ties, before), n_equal));
}
// Of the chunks before those of a block.
struct ChunkSums {
  uint64_t n_above, n_equal;
};
struct Candidates {
  uint16_t* offsets;  // in the chunk
  float* residuals;
  uint64_t room;
};

constexpr unsigned kBins = 1u << kDigitBits;
constexpr uint64_t kNone = ~0ull;
constexpr uint32_t kAllBits = ~0u;

struct Progress {
  uint64_t n_found = 0;  // candidates
  uint64_t first_not_finite = kNone;
  uint64_t first_changed = kNone;  // of lossless tensors that changed, the first one's beginning
  uint32_t min_key = kFirstNonFiniteKey;  // of candidates
  // Selection: the key of the last that is sent, and how many of its equals are.
  uint32_t key = 0;
  uint64_t ties = 0;
  uint32_t known_bits = 0;
  unsigned histogram[kBins] = {};
  unsigned blocks_done = 0;
  // Of what is sent.
  uint64_t n_sent = 0;
  uint32_t least = kFirstNonFiniteKey, most = 0;  // keys
  double squares = 0;                             // but for rounding
  ExactSquares exact_squares;
  Quantizer quantizer;
  LevelMeans means = {};
  uint32_t check = 0;
  uint64_t bad_slice = kNone;  // the first
  uint32_t outside = 0;        // 1: there are symbols that no encoder makes
  uint32_t lacks_room = 0;     // 1: candidates are too many, or too few
  uint32_t unsteady = 0;       // 1: the model was written to while it was read

  // Of k candidates, or all that there are.
  RESFED_HD void choose(uint64_t k) {
    key = k == 0 ? kAllBits : 0;
    known_bits = k == 0 || n_found <= k ? kAllBits : 0;
    ties = k;
  }

  // Whether there is a slice that could not be decoded: nobody has written its symbols.
  __device__ bool is_damaged() const { return bad_slice != kNone; }
};

// True for all threads of the block that ends last; the others' writes are visible to it.
__device__ inline bool is_last_block(Progress* progress) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(&progress->blocks_done, 1u) == gridDim.x - 1;
    if (last) progress->blocks_done = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

template <class T>
__device__ float residual_at(const DeviceMember& member, uint64_t i) {
  return residual_to(member, i, predicted_at<T>(member, i));
}

// What a level stands for.
__device__ inline float value_of(const Quantizer& quantizer, int32_t level) {
  const float size = dequantize_magnitude(quantizer, magnitude(level));
  return level < 0 ? -size : size;
}

// Calls visit(T{}) for the type of a member's elements.
template <class Visit>
__device__ void with_type(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::kFloat32:
      return visit(float{});
    case DType::kFloat16:
      return visit(Half{});
    case DType::kBFloat16:
      return visit(BFloat16{});
    case DType::kFloat64:
      return visit(double{});
    case DType::kOther:
      break;  // never lossy
  }
}

// Calls visit(UInt{}) for the unsigned type of so many bits.
template <class Visit>
__device__ void with_bits(unsigned n_bits, Visit visit) {
  switch (n_bits) {
    case 8:
      return visit(uint8_t{});
    case 16:
      return visit(uint16_t{});
    case 32:
      return visit(uint32_t{});
    default:
      return visit(uint64_t{});
  }
}

// The stages, in order; a host function of each file launches its kernels. `n_blocks` is how many
// fill the device: blocks go on with further work as long as there is some.
struct Stage {
  DeviceGroup group;
  Progress* progress;
  unsigned n_blocks;
  Stream stream;
};

// What is to be collected: k candidates, which select_top() chooses, or `exactly` what is sent.
// `all_nonzero`: all that differ from zero.
struct Wanted {
  uint64_t k;
  bool all_nonzero, exactly;
};
void estimate_threshold(const Stage& stage, const SamplePlan& plan, uint32_t* samples);
// The exact threshold of the k among all elements, k <= n_elems, for a collection of just these.
void find_threshold(const Stage& stage, uint64_t k, Chunk* chunks);
void collect(const Stage& stage, Candidates candidates, const Wanted& wanted, Chunk* chunks);
// Chooses again, among the candidates of a larger selection: the first digit is counted, too.
void count_again(const Stage& stage, Candidates candidates);
// `sums`: one for each of the n_blocks.
void select_top(const Stage& stage, Candidates candidates, const StepRule& rule, Chunk* chunks,
                ChunkSums* sums);
void quantize_candidates(const Stage& stage, Candidates candidates, const Chunk* chunks,
                         const ChunkSums* sums, SentSymbol* symbols);
// What the sent elements become, and what is left of them for feedback, where that is not null.
// Adds to the reference check. `quantizer` and number of symbols are the progress's.
void recover_symbols(const Stage& stage, const SentSymbol* symbols, uint64_t* bits, float* left);
// Predictions and feedback of all elements, to where they are wanted and not there yet.
void write_elements(const Stage& stage);
// And over them those of the sent ones.
void write_sent(const Stage& stage, const SentSymbol* symbols, const uint64_t* bits,
                const float* left);

// Squares of the residuals of all elements, and how many of float64 changed.
struct AllSquares {
  ExactSquares squares;
  uint64_t n_float64 = 0;
  uint64_t first_float64 = kNone;  // of these
};
void sum_squares(const Stage& stage, AllSquares* sums);
// Adds what sending the symbols makes of these squares, modulo 2^64.
void add_remaining(const Stage& stage, const SentSymbol* symbols, ExactSquares* sums);
// Adds the squares of what the symbols change with this quantizer, each rounded up.
void add_changes(const Stage& stage, const SentSymbol* symbols, uint64_t n,
                 const Quantizer& quantizer, ExactSquares* sums);

// The lanes of a payload.
struct LaneTables {
  Partition partition;
  const Lane* of;
  DeviceTables tables;
};

// Of an encoder's lane.
struct FoundLane {
  Block block;
  uint8_t shift;  // of levels
  uint32_t raw_bits;
  LaneCosts costs;  // under the trained sets
};
struct FittedCosts {
  uint32_t gaps, levels;
};
struct MatrixList {
  const MatrixShape* of;
  uint64_t n;
};
constexpr uint32_t kCounts = kFamilies * kCodes;
// Blocks and shifts of all lanes, the codes and raw bits of all nonzeros. Clears the counts.
template <class Nonzero>
void find_symbols(const Stage& stage, const Nonzero* sent, Partition p, MatrixList matrices,
                  NonzeroCode* codes, FoundLane* lanes, uint32_t* counts);
// What the lanes cost, and how often each code occurs, by family.
void find_lane_costs(const Stage& stage, Part part, const NonzeroCode* codes, Partition p,
                     const DeviceTrained* trained, FoundLane* lanes, uint32_t* counts);
void find_fitted_costs(const Stage& stage, Part part, const NonzeroCode* codes, Partition p,
                       const DeviceFitted* fitted, const FoundLane* lanes, FittedCosts* costs);
// Each slice ends where the room of the next begins, and begins at its place.
template <class Nonzero>
void encode_lanes(const Stage& stage, const Nonzero* sent, const NonzeroCode* codes,
                  const LaneTables& lanes, const uint64_t* rooms, uint16_t* words,
                  uint64_t* places);

// Nonzeros with their indices among n_elems. `offsets` has one more entry than there are slices;
// `scans`, of sent symbols, one for each matrix, with row_length 0 where it was not scanned in
// another order; `begins` one for each lane, for the stage's own use.
template <class Nonzero>
void decode_lanes(const Stage& stage, const uint8_t* slices, const uint64_t* offsets,
                  const LaneTables& lanes, const DeviceScan* scans, uint64_t n_elems,
                  uint64_t* begins, Nonzero* nonzeros);

}  // namespace resfed::cuda

// The exact sums of numeric/exact_mean.hpp on a device: what is added to them, and the means.
#pragma once

#include "cuda/group.cuh"
#include "cuda/workspace.hpp"
#include "numeric/exact_mean.hpp"

namespace resfed::cuda {

struct SumTensor {
  const void* reference;
  const void* model;  // of a contribution that is one
  void* out;          // of a result
  int128* sums;       // null: all zero
  int64_t* carries;   // null: all zero
  uint64_t ordinal;
  uint64_t begin;  // place of its first element among all tensors' elements
  uint64_t n_elems;
  uint64_t first_chunk;
  DType dtype;
  uint32_t elem_bytes;
  bool is_signed;

  __device__ bool is_float() const { return dtype != DType::kOther; }
  template <class T>
  __device__ T before(uint64_t element) const {
    return static_cast<const T*>(reference)[element];
  }
};

// The tensors, and which of their elements change: those of a list, by place, or all in which a
// model differs from the reference.
struct ElementChanges {
  const SumTensor* tensors;
  uint64_t n_tensors, n_chunks;
  bool is_model;
  uint64_t* places;
  uint64_t* bits;
  uint64_t n;

  __device__ const SumTensor& tensor_at(uint64_t place) const {
    const SumTensor* const t = tensors;
    return t[last_at_most(n_tensors, place, [=](uint64_t i) { return t[i].begin; })];
  }
  __device__ const SumTensor& tensor_of_chunk(uint64_t chunk) const {
    const SumTensor* const t = tensors;
    return t[last_at_most(n_tensors, chunk, [=](uint64_t i) { return t[i].first_chunk; })];
  }
};

// A host function for each kernel.

// What a decoder has found, as places and bits of the list from `at` on.
void take_elements(const WorkspaceLease& lease, const NewElements& from, const ElementChanges& to,
                   uint64_t at);
// The largest magnitude of what is added to each tensor, as magnitude_bits(); `largest` has zeros.
void find_largest(const WorkspaceLease& lease, const ElementChanges& changes, const Weight& weight,
                  uint64_t* largest);
// No two changes are of one element. Tensors without sums change by zeros.
void add_changes(const WorkspaceLease& lease, const ElementChanges& changes, const Weight& weight);
// Carries over the sums of floats, or of integers; `all` are all elements.
void carry_over(const WorkspaceLease& lease, const ElementChanges& all, bool floats);
void write_means(const WorkspaceLease& lease, const ElementChanges& all, double total_weight,
                 int128 integer_weight);
void clear(const WorkspaceLease& lease, uint64_t* words, uint64_t n);

}  // namespace resfed::cuda

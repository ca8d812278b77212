// The tensors of a group on a device.
#pragma once

#include "cuda/geometry.hpp"
#include "format/groups.hpp"
#include "numeric/lossless.hpp"

namespace resfed::cuda {

// A tensor of the group, as kernels see it.
struct DeviceMember {
  const void* current;
  const void* reference;
  void* out;
  float* feedback;
  Prediction prediction;
  uint64_t begin;        // index of its first element in the group
  uint64_t n_elems;      // >= 1
  uint64_t first_chunk;  // among all chunks of the group
  Patterns patterns;
  DType dtype;
  bool plain;    // neither terms nor feedback
  bool aligned;  // four elements together can be loaded
  bool writes_prediction;
  uint64_t ordinal;  // among all tensors of the call
};
struct DeviceGroup {
  const DeviceMember* members;
  uint64_t n_members;
  uint64_t n_elems;
  uint64_t n_chunks;

  __device__ const DeviceMember& member_of_chunk(uint64_t chunk) const {
    const DeviceMember* const p = members;
    return p[last_at_most(n_members, chunk, [=](uint64_t i) { return p[i].first_chunk; })];
  }
  __device__ const DeviceMember& member_at(uint64_t index) const {
    const DeviceMember* const p = members;
    return p[last_at_most(n_members, index, [=](uint64_t i) { return p[i].begin; })];
  }
};

// Elements that a payload changes, none twice, and their new bits.
struct NewElements {
  DeviceGroup group{};
  const SentSymbol* symbols = nullptr;  // with their indices in the group; or
  const uint64_t* elements = nullptr;   // the indices themselves
  const uint64_t* bits = nullptr;
  uint64_t n = 0;

  __device__ uint64_t index(uint64_t i) const {
    return symbols != nullptr ? symbols[i].index() : elements[i];
  }
};

bool writes_prediction(const Tensor& t);

// The group as kernels see it, when what is filled in at `members` has been copied to `device`.
DeviceGroup fill_in(const Group& group, uint32_t chunk_elems, DeviceMember* members,
                    const DeviceMember* device);

}  // namespace resfed::cuda

// Tensors sorted into groups by role. Host code that every backend shares.
#pragma once

#include "api.hpp"
#include "entropy/sent_symbol.hpp"

namespace resfed {

// The lossy elements of one role, laid end to end in the order of the tensors.
struct Member {
  const Tensor* tensor;
  uint64_t ordinal;      // among all tensors of the call
  uint64_t begin;        // index of its first element in the group
  float scale = 1.0f;    // residuals are multiplied by this ...
  float unscale = 1.0f;  // ... and values by this
};
struct Group {
  std::vector<Member> members;  // none empty
  uint64_t n_elems = 0;
  uint64_t base = 0;  // index of its first element among all lossy elements of a payload
};

// The member that holds an element of the group.
inline const Member& member_at(const Group& group, uint64_t element) {
  size_t low = 0, high = group.members.size();  // last member that begins at or before it
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    (group.members[middle].begin <= element ? low : high) = middle;
  }
  return group.members[low];
}

struct Groups {
  Group matrix, vector, dense, lossless;
};

// Throws kModelTooLarge.
inline Groups make_groups(const std::vector<Tensor>& tensors) {
  Groups groups;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    if (t.n_elems == 0) continue;
    Group& group = t.role == Role::kMatrix   ? groups.matrix
                   : t.role == Role::kVector ? groups.vector
                   : t.role == Role::kDense  ? groups.dense
                                             : groups.lossless;
    group.members.push_back({&t, i, group.n_elems});
    group.n_elems += t.n_elems;
  }
  groups.vector.base = groups.matrix.n_elems;
  groups.dense.base = groups.vector.base + groups.vector.n_elems;
  const uint64_t n_lossy = groups.dense.base + groups.dense.n_elems;
  if (n_lossy > kMaxLossyElements) throw Failure{Code::kModelTooLarge, 0, n_lossy};
  return groups;
}

inline void apply_exponents(Group& group, const std::vector<int8_t>& exponents) {
  for (size_t i = 0; i < group.members.size(); ++i) {
    group.members[i].scale = power_of_two(-exponents[i]);
    group.members[i].unscale = power_of_two(exponents[i]);
  }
}

}  // namespace resfed

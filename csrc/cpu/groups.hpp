// Tensors sorted into groups by role. Throws kModelTooLarge.
#pragma once

#include "cpu/residual.hpp"

namespace resfed {

struct Groups {
  Group matrix, vector, lossless;
};

inline Groups make_groups(const std::vector<Tensor>& tensors) {
  Groups groups;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    if (t.n_elems == 0) continue;
    Group& group = t.role == Role::kMatrix   ? groups.matrix
                   : t.role == Role::kVector ? groups.vector
                                             : groups.lossless;
    group.pieces.push_back({&t, i, group.n_elems});
    group.n_elems += t.n_elems;
  }
  groups.vector.base = groups.matrix.n_elems;
  const uint64_t n_lossy = groups.matrix.n_elems + groups.vector.n_elems;
  if (n_lossy > kMaxLossyElements) throw Failure{Code::kModelTooLarge, 0, n_lossy};
  return groups;
}

inline void apply_exponents(Group& vector, const std::vector<int8_t>& exponents) {
  for (size_t i = 0; i < vector.pieces.size(); ++i) {
    vector.pieces[i].scale = power_of_two(-exponents[i]);
    vector.pieces[i].unscale = power_of_two(exponents[i]);
  }
}

}  // namespace resfed

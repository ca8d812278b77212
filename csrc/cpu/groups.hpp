// Tensors sorted into groups by role.
#pragma once

#include <cstring>

#include "cpu/residual.hpp"
#include "cpu/threads.hpp"

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
  return groups;
}

inline void apply_exponents(Group& vector, const std::vector<int8_t>& exponents) {
  for (size_t i = 0; i < vector.pieces.size(); ++i) {
    vector.pieces[i].scale = power_of_two(-exponents[i]);
    vector.pieces[i].unscale = power_of_two(exponents[i]);
  }
}

// Fills every `out` with its reference, ready for the recovered values to be written over it.
inline void copy_references(const Groups& groups) {
  for (const Group* group : {&groups.matrix, &groups.vector, &groups.lossless}) {
    parallel_for(n_segments(*group), [&](size_t s) {
      for_each_part(*group, s, [](const Piece& piece, uint64_t first, uint64_t n, uint32_t) {
        const Tensor& t = *piece.tensor;
        if (t.out == nullptr || t.out == t.reference) return;
        std::memcpy(static_cast<uint8_t*>(t.out) + first * t.elem_bytes,
                    static_cast<const uint8_t*>(t.reference) + first * t.elem_bytes,
                    n * t.elem_bytes);
      });
    });
  }
}

}  // namespace resfed

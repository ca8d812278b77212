// Python tensors as resfed::Tensor. Python has checked them and keeps them alive for the call.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "api.hpp"

namespace resfed {

// (current, reference, out, n_elems, elem_bytes, dtype, role): addresses as integers, 0 for none.
inline std::vector<Tensor> tensors_from(const pybind11::sequence& rows) {
  const auto pointer = [](pybind11::handle h) {
    return reinterpret_cast<void*>(h.cast<uintptr_t>());
  };
  std::vector<Tensor> tensors;
  tensors.reserve(rows.size());
  for (const pybind11::handle row : rows) {
    const auto t = row.cast<pybind11::tuple>();
    if (t.size() != 7) throw pybind11::value_error("a tensor row has 7 fields");
    tensors.push_back({.current = pointer(t[0]),
                       .reference = pointer(t[1]),
                       .out = pointer(t[2]),
                       .n_elems = t[3].cast<uint64_t>(),
                       .elem_bytes = t[4].cast<uint32_t>(),
                       .dtype = static_cast<DType>(t[5].cast<uint8_t>()),
                       .role = static_cast<Role>(t[6].cast<uint8_t>())});
  }
  return tensors;
}

}  // namespace resfed

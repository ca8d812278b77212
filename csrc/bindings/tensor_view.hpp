// Python tensors as resfed::Tensor. Python has checked them and keeps them alive for the call.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "api.hpp"
#include "bindings/device_array.hpp"

namespace resfed {

// (current, reference, out, n_elems, elem_bytes, dtype, role[, feedback, terms]): contiguous
// arrays of the host or of one device, None for none; terms are (array, coefficient).
inline std::vector<Tensor> tensors_from(const pybind11::sequence& rows) {
  const auto pointer = [](pybind11::handle h) -> void* {
    if (h.is_none()) return nullptr;
    if (pybind11::isinstance<DeviceArray>(h)) return h.cast<const DeviceArray&>().data;
    return const_cast<void*>(h.cast<pybind11::array>().data());
  };
  std::vector<Tensor> tensors;
  tensors.reserve(rows.size());
  for (const pybind11::handle row : rows) {
    const auto t = row.cast<pybind11::tuple>();
    if (t.size() != 7 && t.size() != 9) throw pybind11::value_error("a row has 7 or 9 fields");
    Tensor& tensor = tensors.emplace_back();
    tensor.current = pointer(t[0]);
    tensor.reference = pointer(t[1]);
    tensor.out = pointer(t[2]);
    tensor.n_elems = t[3].cast<uint64_t>();
    tensor.elem_bytes = t[4].cast<uint32_t>();
    tensor.dtype = static_cast<DType>(t[5].cast<uint8_t>());
    tensor.role = static_cast<Role>(t[6].cast<uint8_t>());
    if (t.size() == 7) continue;
    tensor.feedback = static_cast<float*>(pointer(t[7]));
    const auto terms = t[8].cast<pybind11::tuple>();
    if (terms.size() > kMaxTerms) throw pybind11::value_error("too many terms");
    Prediction& prediction = tensor.prediction;
    for (const pybind11::handle term : terms) {
      const auto pair = term.cast<pybind11::tuple>();
      prediction.terms[prediction.n_terms] = pointer(pair[0]);
      prediction.coefficients[prediction.n_terms++] = pair[1].cast<float>();
    }
  }
  return tensors;
}

}  // namespace resfed

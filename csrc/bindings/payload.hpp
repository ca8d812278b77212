// Payload of the module: an update's bytes, verified and read once, and what is in them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "api.hpp"
#include "bindings/gil.hpp"

namespace resfed {

// The bytes live as long as what was read from them.
class PythonPayload {
 public:
  PythonPayload(pybind11::bytes bytes, uint64_t n_tensors, std::optional<uint64_t> layout_digest)
      : bytes_(std::move(bytes)) {
    const std::string_view view = bytes_;
    const GilRelease no_gil;
    payload_ = open_payload(reinterpret_cast<const uint8_t*>(view.data()), view.size(), n_tensors,
                            layout_digest);
  }

  const pybind11::bytes& bytes() const { return bytes_; }
  const Payload& operator*() const { return payload_; }
  const Frame& frame() const { return payload_.frame; }

 private:
  pybind11::bytes bytes_;
  Payload payload_;
};

// The numbers as they lie in memory, for `Numbers` in codec/numbers.py: a list takes many times as
// much.
template <class T>
pybind11::bytes raw(const std::vector<T>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T)};
}

inline void bind_payload(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<Quantizer>(m, "Quantizer")
      .def_readonly("threshold", &Quantizer::threshold)
      .def_readonly("step", &Quantizer::step)
      .def_property_readonly("offsets", [](const Quantizer& q) {
        return std::vector<int>(q.offsets, q.offsets + q.n_offsets);
      });

  py::class_<Link>(m, "Link")
      .def(py::init([](const std::string& bytes, uint64_t n_tensors) {
             return read_link(bytes, n_tensors);
           }),
           py::arg("data"), py::arg("n_tensors"))
      .def_readonly("version", &Link::version)
      .def_readonly("back", &Link::back)
      .def_readonly("other", &Link::other)
      .def_readonly("n_own", &Link::n_own)
      .def_readonly("n_other", &Link::n_other)
      .def_readonly("keep", &Link::keep)
      .def_readonly("places", &Link::places)
      .def_readonly("coef_log2", &Link::coef_log2)
      .def_property_readonly("numerators", [](const Link& l) { return raw(l.numerators); })
      .def_property_readonly("ordinals", [](const Link& l) { return raw(l.ordinals); });

  py::class_<PythonPayload> payload(m, "Payload");
  payload
      .def(py::init<py::bytes, uint64_t, std::optional<uint64_t>>(), py::arg("data"),
           py::arg("n_tensors") = kMostTensors, py::arg("layout_digest") = py::none())
      .def_property_readonly("data", &PythonPayload::bytes)
      .def_property_readonly("link", [](const PythonPayload& p) { return (*p).link; })
      .def_property_readonly("n_lossy_slices",
                             [](const PythonPayload& p) { return p.frame().n_lossy_slices(); });
  const auto field = [&](const char* name, auto member) {
    payload.def_property_readonly(name,
                                  [member](const PythonPayload& p) { return p.frame().*member; });
  };
  field("format_version", &Frame::version);
  field("lane_log2", &Frame::lane_log2);
  field("digest", &Frame::digest);
  field("reference_check", &Frame::reference_check);
  field("n_matrix", &Frame::n_matrix);
  field("n_vector", &Frame::n_vector);
  field("n_dense", &Frame::n_dense);
  field("n_lossless", &Frame::n_lossless);
  field("k_matrix", &Frame::k_matrix);
  field("k_vector", &Frame::k_vector);
  field("k_dense", &Frame::k_dense);
  field("n_changed", &Frame::n_changed);
  field("matrix", &Frame::matrix);
  field("vector", &Frame::vector);
  field("dense", &Frame::dense);
  field("counts_offset", &Frame::counts_offset);
  field("quantizer_offset", &Frame::quantizer_offset);
  field("table_offset", &Frame::table_offset);
  field("slices_offset", &Frame::slices_offset);
  const auto list = [&](const char* name, auto member) {
    payload.def_property_readonly(
        name, [member](const PythonPayload& p) { return raw(p.frame().*member); });
  };
  list("exponents", &Frame::exponents);
  list("dense_exponents", &Frame::dense_exponents);
  list("exclusions", &Frame::exclusions);
  list("dense_tensors", &Frame::dense_tensors);
  list("slice_bytes", &Frame::slice_bytes);
}

}  // namespace resfed

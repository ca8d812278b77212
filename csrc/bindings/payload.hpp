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

// Fields of resfed_codec.PayloadInfo, by name: quantizers as tuples, lists of numbers as bytes.
inline pybind11::dict fields_of(const Frame& f) {
  namespace py = pybind11;
  const auto quantizer = [](const Quantizer& q, uint64_t n_sent) -> py::object {
    if (n_sent == 0) return py::none();
    const std::vector<int> offsets(q.offsets, q.offsets + q.n_offsets);
    return py::make_tuple(q.threshold, q.step, py::tuple(py::cast(offsets)));
  };
  const auto lossless = f.slice_bytes.begin() + static_cast<ptrdiff_t>(f.n_lossy_slices());
  const std::vector<uint64_t> lossy_slices(f.slice_bytes.begin(), lossless);
  const std::vector<uint64_t> lossless_slices(lossless, f.slice_bytes.end());
  const auto link_bytes = f.counts_offset - kFixedHeaderBytes;
  py::dict fields;
  fields["format_version"] = f.version;
  fields["digest"] = f.digest;
  fields["reference_check"] = f.reference_check;
  fields["n_matrix"] = f.n_matrix;
  fields["n_vector"] = f.n_vector;
  fields["n_dense"] = f.n_dense;
  fields["n_lossless"] = f.n_lossless;
  fields["k_matrix"] = f.k_matrix;
  fields["k_vector"] = f.k_vector;
  fields["k_dense"] = f.k_dense;
  fields["n_changed"] = f.n_changed;
  fields["matrix"] = quantizer(f.matrix, f.k_matrix);
  fields["vector"] = quantizer(f.vector, f.k_vector);
  fields["dense"] = quantizer(f.dense, f.k_dense);
  fields["exponents"] = raw(f.exponents);
  fields["dense_exponents"] = raw(f.dense_exponents);
  fields["exclusions"] = raw(f.exclusions);
  fields["dense_tensors"] = raw(f.dense_tensors);
  fields["lossy_slices"] = raw(lossy_slices);
  fields["lossless_slices"] = raw(lossless_slices);
  fields["header_bytes"] = f.quantizer_offset - link_bytes;
  fields["link_bytes"] = link_bytes;
  fields["quantizer_bytes"] = f.table_offset - f.quantizer_offset;
  fields["table_bytes"] = f.slices_offset - f.table_offset;
  fields["checksum_bytes"] = kChecksumBytes;
  return fields;
}

// Fields of resfed_codec.Link, by name; of its terms, what they are made of.
inline pybind11::dict fields_of(const Link& link) {
  namespace py = pybind11;
  py::dict fields;
  fields["version"] = link.version;
  fields["base"] = link.back > 0 ? py::object(py::int_(link.version - link.back)) : py::none();
  fields["other"] = link.other > 0 ? py::object(py::int_(link.other - 1)) : py::none();
  fields["n_own"] = link.n_own;
  fields["n_other"] = link.n_other;
  fields["keep"] = link.keep;
  fields["coef_log2"] = link.coef_log2;
  fields["places"] = link.places;
  fields["numerators"] = raw(link.numerators);
  fields["ordinals"] = raw(link.ordinals);
  return fields;
}

inline void bind_payload(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      "read_link",
      [](const std::string& bytes, uint64_t n_tensors) {
        return fields_of(read_link(bytes, n_tensors));
      },
      py::arg("data"), py::arg("n_tensors"));
  py::class_<PythonPayload>(m, "Payload")
      .def(py::init<py::bytes, uint64_t, std::optional<uint64_t>>(), py::arg("data"),
           py::arg("n_tensors") = kMostTensors, py::arg("layout_digest") = py::none())
      .def_property_readonly("data", &PythonPayload::bytes)
      .def_property_readonly("link",
                             [](const PythonPayload& p) -> py::object {
                               const auto& link = (*p).link;
                               return link ? py::object(fields_of(*link)) : py::none();
                             })
      .def_property_readonly("digest", [](const PythonPayload& p) { return p.frame().digest; })
      .def_property_readonly("exclusions",
                             [](const PythonPayload& p) { return raw(p.frame().exclusions); })
      .def_property_readonly("dense_tensors",
                             [](const PythonPayload& p) { return raw(p.frame().dense_tensors); })
      .def("fields", [](const PythonPayload& p) { return fields_of(p.frame()); });
}

}  // namespace resfed

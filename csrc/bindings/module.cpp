// The native module: a table of contents. Public documentation is in the Python layer.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "api.hpp"
#include "bindings/commit.hpp"
#include "bindings/constants.hpp"
#include "bindings/device_array.hpp"
#include "bindings/gil.hpp"
#include "bindings/overlaps.hpp"
#include "bindings/tensors.hpp"
#include "cpu/aggregate.hpp"
#include "cpu/crc32c.hpp"
#include "cpu/keyframe.hpp"
#include "cpu/residual.hpp"
#include "cpu/slice.hpp"
#include "format/link.hpp"
#include "format/version.hpp"

namespace py = pybind11;
using namespace resfed;

namespace {

py::object encode_tensors(const TensorColumns& columns, const EncodeOptions& options,
                          const py::object& plan) {
  Held held;
  const std::vector<Tensor> tensors =
      tensors_from(columns, {.current = true, .reference = true}, held);
  py::object payload;
  Commit commit(plan);
  const Unlocked unlocked;
  encode(tensors, options, [&](const std::vector<uint8_t>& bytes) {
    const Locked locked;
    payload = to_bytes(bytes);
    commit(payload);
  });
  return payload;
}

std::string_view view(const py::bytes& payload) { return payload; }
const uint8_t* data_of(std::string_view v) { return reinterpret_cast<const uint8_t*>(v.data()); }

void decode_tensors(const py::bytes& payload, uint64_t digest, const TensorColumns& columns,
                    const py::object& plan) {
  Held held;
  const std::vector<Tensor> tensors = tensors_from(columns, {.reference = true}, held);
  const std::string_view bytes = view(payload);
  Commit commit(plan);
  const Unlocked unlocked;
  decode(data_of(bytes), bytes.size(), digest, tensors, [&] {
    const Locked locked;
    commit();
  });
}

py::object encode_keyframe_of(const TensorColumns& columns, uint64_t layout_digest,
                              unsigned mantissa_bits) {
  Held held;
  const std::vector<Tensor> tensors = tensors_from(columns, {.current = true}, held);
  std::vector<uint8_t> payload;
  {
    const Unlocked unlocked;
    payload = encode_keyframe(tensors, layout_digest, mantissa_bits);
  }
  return to_bytes(payload);
}

void decode_keyframe_into(const py::bytes& payload, uint64_t layout_digest,
                          const TensorColumns& columns) {
  Held held;
  const std::vector<Tensor> tensors = tensors_from(columns, {.out = true}, held);
  const std::string_view bytes = view(payload);
  const Unlocked unlocked;
  decode_keyframe(data_of(bytes), bytes.size(), layout_digest, tensors);
}

std::unique_ptr<Contribution> prepare_payload(Aggregator& aggregator, const py::bytes& payload,
                                              uint64_t digest, double weight) {
  const std::string_view bytes = view(payload);
  const Unlocked unlocked;
  return aggregator.prepare(data_of(bytes), bytes.size(), digest, weight);
}

py::dict quantizer_dict(const Quantizer& q) {
  py::list offsets;
  for (uint32_t i = 0; i < q.n_offsets; ++i) offsets.append(q.offsets[i]);
  return py::dict(py::arg("threshold") = q.threshold, py::arg("step") = q.step,
                  py::arg("offsets") = offsets);
}

// The numbers as they lie in memory, for array.array: a list of them would take many times as much.
template <class T>
py::bytes raw(const std::vector<T>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T)};
}

py::tuple parse_link(const py::bytes& link, uint64_t n_tensors) {
  try {
    const Link l = read_link(data_of(view(link)), view(link).size(), n_tensors);
    return py::make_tuple(l.version, l.back, l.other, l.n_own, l.n_other, l.keep, l.places,
                          l.coef_log2, raw(l.numerators), raw(l.ordinals));
  } catch (const Failure& f) {
    if (f.code == Code::kNoSuchTensor) throw;
    throw Failure{Code::kBadLink, f.where, static_cast<uint64_t>(f.code)};
  }
}

py::dict inspect_payload(const py::bytes& payload, uint64_t n_tensors) {
  const std::string_view bytes = view(payload);
  Frame f;
  {
    const Unlocked unlocked;
    f = open_payload(data_of(bytes), bytes.size(), n_tensors);
  }
  py::dict d;
  d["format_version"] = f.version;
  d["slice_log2"] = f.slice_log2;
  d["digest"] = f.digest;
  d["link"] = py::bytes(f.link);
  d["counts_offset"] = f.counts_offset;
  d["reference_check"] = f.reference_check;
  d["n_matrix"] = f.n_matrix;
  d["n_vector"] = f.n_vector;
  d["n_dense"] = f.n_dense;
  d["n_lossless"] = f.n_lossless;
  d["k_matrix"] = f.k_matrix;
  d["k_vector"] = f.k_vector;
  d["k_dense"] = f.k_dense;
  d["n_changed"] = f.n_changed;
  d["matrix"] = quantizer_dict(f.matrix);
  d["vector"] = quantizer_dict(f.vector);
  d["dense"] = quantizer_dict(f.dense);
  d["exponents"] = raw(f.exponents);
  d["dense_exponents"] = raw(f.dense_exponents);
  d["exclusions"] = raw(f.exclusions);
  d["dense_tensors"] = raw(f.dense_tensors);
  d["slice_bytes"] = raw(f.slice_bytes);
  d["n_lossy_slices"] = f.lossy_partition().n_slices;
  d["quantizer_offset"] = f.quantizer_offset;
  d["table_offset"] = f.table_offset;
  d["slices_offset"] = f.slices_offset;
  return d;
}

py::tuple trace(const std::vector<uint64_t>& indices, const std::vector<int32_t>& levels,
                const std::vector<std::tuple<uint64_t, uint64_t, uint64_t>>& row_lengths,
                unsigned slice_log2) {
  Scratch<SentSymbol> symbols;
  for (size_t i = 0; i < indices.size(); ++i) symbols.emplace_back(indices[i], levels[i]);
  RowLengths rows;
  for (const auto& [begin, length, block] : row_lengths) rows.push_back({begin, length, block});
  std::vector<uint64_t> ends;
  const std::vector<uint16_t> decisions = trace_decisions(symbols, rows, slice_log2, &ends);
  return py::make_tuple(
      py::bytes(reinterpret_cast<const char*>(decisions.data()), 2 * decisions.size()), ends);
}

// NativeError(code, where, detail): a Failure as Python sees it.
void bind_error(py::module_& m) {
  static py::exception<Failure> native_error(m, "NativeError");
  const auto property = [](const char* name, size_t place) {
    const py::cpp_function get(
        [place](const py::object& error) { return error.attr("args")[py::int_(place)]; });
    native_error.attr(name) = py::module_::import("builtins").attr("property")(get);
  };
  property("code", 0);
  property("where", 1);
  property("detail", 2);
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Failure& f) {
      const py::object code = py::module_::import("resfed_codec._native").attr("Code");
      py::set_error(native_error,
                    py::make_tuple(code(static_cast<uint32_t>(f.code)), f.where, f.detail));
    }
  });
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native part of resfed_codec. Not public: use the package's functions.";

  bind_constants(m);
  bind_error(m);
  bind_tensors(m);

  py::class_<StepRule>(m, "StepRule")
      .def(py::init<>())
      .def_readwrite("ratio", &StepRule::ratio)
      .def_readwrite("bits", &StepRule::bits)
      .def_readwrite("automatic", &StepRule::automatic);
  py::class_<EncodeOptions>(m, "EncodeOptions")
      .def(py::init<>())
      .def_readwrite("digest", &EncodeOptions::digest)
      .def_property(
          "link", [](const EncodeOptions& o) { return py::bytes(o.link); },
          [](EncodeOptions& o, const py::bytes& link) { o.link = std::string(link); })
      .def_readwrite("k_matrix", &EncodeOptions::k_matrix)
      .def_readwrite("k_vector", &EncodeOptions::k_vector)
      .def_readwrite("max_bytes", &EncodeOptions::max_bytes)
      .def_readwrite("max_error", &EncodeOptions::max_error)
      .def_readwrite("vector_share", &EncodeOptions::vector_share)
      .def_readwrite("step", &EncodeOptions::step)
      .def_readwrite("slice_log2", &EncodeOptions::slice_log2)
      .def_readwrite("exclusions", &EncodeOptions::exclusions)
      .def_readwrite("dense", &EncodeOptions::dense)
      .def_readwrite("dense_bits", &EncodeOptions::dense_bits)
      .def_readwrite("row_lengths", &EncodeOptions::row_lengths)
      .def_readwrite("blocks", &EncodeOptions::blocks);

  py::class_<Contribution>(m, "Contribution");
  py::class_<Aggregator>(m, "Aggregator")
      .def(py::init([](const TensorColumns& columns, std::vector<bool> is_signed,
                       const std::vector<bool>& is_complex) {
             if (is_signed.size() != columns.size())
               throw py::value_error("is_signed: one per tensor");
             if (!is_complex.empty() && is_complex.size() != columns.size())
               throw py::value_error("is_complex: one per tensor");
             Held held;
             return std::make_unique<Aggregator>(tensors_from(columns, {.reference = true}, held),
                                                 std::move(is_signed), is_complex);
           }),
           py::arg("tensors"), py::arg("is_signed"), py::arg("is_complex") = std::vector<bool>(),
           py::keep_alive<1, 2>())
      .def("prepare", &prepare_payload, py::arg("payload"), py::arg("digest"), py::arg("weight"))
      .def(
          "prepare_state",
          [](const Aggregator& a, const py::sequence& arrays, double weight) {
            Held held;
            const std::vector<void*> state = arrays_like(a.tensors(), arrays, false, held);
            const Unlocked unlocked;
            return a.prepare({state.begin(), state.end()}, weight);
          },
          py::arg("arrays"), py::arg("weight"))
      .def(
          "add",
          [](Aggregator& a, Contribution& contribution, Contribution* replaced,
             const py::object& plan) {
            Commit commit(plan);
            const Unlocked unlocked;
            a.add(&contribution, replaced, [&] {
              const Locked locked;
              commit();
            });
          },
          py::arg("contribution"), py::arg("replaced") = py::none(), py::arg("commit") = py::none())
      .def(
          "result",
          [](const Aggregator& a, const py::sequence& arrays, double total_weight) {
            Held held;
            const std::vector<void*> out = arrays_like(a.tensors(), arrays, true, held);
            const Unlocked unlocked;
            a.result(out, total_weight);
          },
          py::arg("arrays"), py::arg("total_weight"));

  m.def("encode", &encode_tensors, py::arg("tensors"), py::arg("options"),
        py::arg("commit") = py::none());
  m.def("decode", &decode_tensors, py::arg("payload"), py::arg("digest"), py::arg("tensors"),
        py::arg("commit") = py::none());
  m.def(
      "add_values",
      [](const py::bytes& payload, const TensorColumns& columns) {
        Held held;
        const std::vector<Tensor> tensors = tensors_from(columns, {.feedback = true}, held);
        add_values(data_of(view(payload)), view(payload).size(), tensors);
      },
      py::arg("payload"), py::arg("tensors"));
  m.def(
      "moments",
      [](const TensorColumns& columns) {
        Held held;
        const std::vector<Tensor> tensors =
            tensors_from(columns, {.current = true, .reference = true}, held);
        const Unlocked unlocked;
        return moments(tensors);
      },
      py::arg("tensors"));
  m.def(
      "crc32c",
      [](const py::bytes& data) { return crc32c(data_of(view(data)), view(data).size()); },
      py::arg("data"));
  m.def("inspect", &inspect_payload, py::arg("payload"), py::arg("n_tensors") = kMostTensors);
  m.def(
      "link_of",
      [](const py::bytes& payload) {
        return py::bytes(link_bytes(data_of(view(payload)), view(payload).size()));
      },
      py::arg("payload"));
  m.def("overlaps", &overlaps, py::arg("out"), py::arg("reference"));
  m.def("parse_link", &parse_link, py::arg("link"), py::arg("n_tensors"));
  m.def("encode_keyframe", &encode_keyframe_of, py::arg("tensors"), py::arg("layout_digest"),
        py::arg("mantissa_bits"));
  m.def("decode_keyframe", &decode_keyframe_into, py::arg("payload"), py::arg("layout_digest"),
        py::arg("tensors"));
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("n"));
  m.def("kernels", [] { return collect_kernels().name; });
  m.def(
      "choose_kernels", [](const std::string& name) { return choose_kernels(name.c_str()); },
      py::arg("name"));
  bind_device(m);
  m.def("trace", &trace, py::arg("indices"), py::arg("levels"), py::arg("row_lengths"),
        py::arg("slice_log2"));
  m.def("initial_states", [] {
    py::list states;
    for (uint32_t i = 0; i < CurrentFormat::Contexts::kSlice; ++i) {
      const InitialState s = CurrentFormat::initial_slice_state(i);
      states.append(py::make_tuple(s.probability, s.count));
    }
    return states;
  });
}

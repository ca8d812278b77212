// The native module: a table of contents. Public documentation is in the Python layer.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "api.hpp"
#include "bindings/commit.hpp"
#include "bindings/constants.hpp"
#include "bindings/device_array.hpp"
#include "bindings/gil.hpp"
#include "bindings/overlaps.hpp"
#include "bindings/payload.hpp"
#include "bindings/tensors.hpp"
#include "cpu/aggregate.hpp"
#include "cpu/crc32c.hpp"
#include "cpu/keyframe.hpp"
#include "cpu/lanes.hpp"
#include "cpu/residual.hpp"
#include "format/version.hpp"

namespace py = pybind11;
using namespace resfed;

namespace {

py::object encode_tensors(const TensorColumns& columns, const EncodeOptions& options,
                          const py::object& plan) {
  ResizeGuard guard;
  const std::vector<Tensor> tensors =
      tensors_from(columns, {.current = true, .reference = true}, guard);
  py::object payload;
  Commit commit(plan);
  const GilRelease no_gil;
  encode(tensors, options, [&](const std::vector<uint8_t>& bytes) {
    const GilAcquire gil;
    payload = to_bytes(bytes);
    commit(payload);
  });
  return payload;
}

std::string_view view(const py::bytes& payload) { return payload; }
const uint8_t* data_of(std::string_view v) { return reinterpret_cast<const uint8_t*>(v.data()); }

void decode_tensors(const PythonPayload& payload, uint64_t digest, const TensorColumns& columns,
                    const py::object& plan) {
  ResizeGuard guard;
  const std::vector<Tensor> tensors = tensors_from(columns, {.reference = true}, guard);
  Commit commit(plan);
  const GilRelease no_gil;
  decode(*payload, digest, tensors, [&] {
    const GilAcquire gil;
    commit();
  });
}

py::object encode_keyframe_of(const TensorColumns& columns, uint64_t layout_digest,
                              unsigned mantissa_bits) {
  ResizeGuard guard;
  const std::vector<Tensor> tensors = tensors_from(columns, {.current = true}, guard);
  std::vector<uint8_t> payload;
  {
    const GilRelease no_gil;
    payload = encode_keyframe(tensors, layout_digest, mantissa_bits);
  }
  return to_bytes(payload);
}

void decode_keyframe_into(const py::bytes& payload, uint64_t layout_digest,
                          const TensorColumns& columns) {
  ResizeGuard guard;
  const std::vector<Tensor> tensors = tensors_from(columns, {.out = true}, guard);
  const std::string_view bytes = view(payload);
  const GilRelease no_gil;
  decode_keyframe(data_of(bytes), bytes.size(), layout_digest, tensors);
}

std::unique_ptr<Contribution> prepare_payload(Aggregator& aggregator, const PythonPayload& payload,
                                              uint64_t digest, double weight) {
  const GilRelease no_gil;
  return aggregator.prepare(*payload, digest, weight);
}

using Trace = std::vector<std::tuple<bool, py::bytes, py::bytes>>;
Trace as_python(const std::vector<TracedLane>& traced) {
  const auto bytes = [](const std::vector<uint16_t>& codes) {
    return py::bytes(reinterpret_cast<const char*>(codes.data()), 2 * codes.size());
  };
  Trace lanes;
  for (const TracedLane& lane : traced) {
    lanes.emplace_back(lane.blocks, bytes(lane.gaps), bytes(lane.levels));
  }
  return lanes;
}

// The symbols of each lane with their rows: (blocks, gaps, levels).
Trace trace(const std::vector<uint64_t>& indices, const std::vector<int32_t>& levels,
            const std::vector<std::tuple<uint64_t, uint64_t, uint64_t, uint64_t>>& matrices,
            unsigned lane_log2) {
  Scratch<SentSymbol> symbols;
  for (size_t i = 0; i < indices.size(); ++i) symbols.emplace_back(indices[i], levels[i]);
  MatrixShapes shapes;
  for (const auto& [begin, n_elems, row_length, block] : matrices) {
    shapes.push_back({begin, n_elems, row_length, block});
  }
  return as_python(trace_nonzeros(symbols, shapes, lane_log2));
}
Trace trace_changes(const std::vector<uint64_t>& indices, const std::vector<int64_t>& levels,
                    unsigned lane_log2) {
  std::vector<ChangedElement> changes;
  for (size_t i = 0; i < indices.size(); ++i) changes.emplace_back(indices[i], levels[i]);
  return as_python(trace_changes(changes, lane_log2));
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
  bind_payload(m);

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
      .def_readwrite("max_norm", &EncodeOptions::max_norm)
      .def_readwrite("vector_share", &EncodeOptions::vector_share)
      .def_readwrite("step", &EncodeOptions::step)
      .def_readwrite("lane_log2", &EncodeOptions::lane_log2)
      .def_readwrite("exclusions", &EncodeOptions::exclusions)
      .def_readwrite("dense", &EncodeOptions::dense)
      .def_readwrite("dense_bits", &EncodeOptions::dense_bits)
      .def_readwrite("blocks", &EncodeOptions::blocks);

  py::class_<Contribution>(m, "Contribution");
  py::class_<Aggregator>(m, "Aggregator")
      .def(py::init([](const TensorColumns& columns, std::vector<bool> is_signed,
                       const std::vector<bool>& is_complex) {
             if (is_signed.size() != columns.size())
               throw py::value_error("is_signed: one per tensor");
             if (!is_complex.empty() && is_complex.size() != columns.size())
               throw py::value_error("is_complex: one per tensor");
             ResizeGuard guard;
             return std::make_unique<Aggregator>(tensors_from(columns, {.reference = true}, guard),
                                                 std::move(is_signed), is_complex);
           }),
           py::arg("tensors"), py::arg("is_signed"), py::arg("is_complex") = std::vector<bool>(),
           py::keep_alive<1, 2>())
      .def("prepare", &prepare_payload, py::arg("payload"), py::arg("digest"), py::arg("weight"))
      .def(
          "prepare_state",
          [](const Aggregator& a, const py::sequence& arrays, double weight) {
            ResizeGuard guard;
            const std::vector<void*> state = arrays_like(a.tensors(), arrays, false, guard);
            const GilRelease no_gil;
            return a.prepare({state.begin(), state.end()}, weight);
          },
          py::arg("arrays"), py::arg("weight"))
      .def(
          "add",
          [](Aggregator& a, Contribution& contribution, Contribution* replaced,
             const py::object& plan) {
            Commit commit(plan);
            const GilRelease no_gil;
            a.add(&contribution, replaced, [&] {
              const GilAcquire gil;
              commit();
            });
          },
          py::arg("contribution"), py::arg("replaced") = py::none(), py::arg("commit") = py::none())
      .def(
          "result",
          [](const Aggregator& a, const py::sequence& arrays, double total_weight) {
            ResizeGuard guard;
            const std::vector<void*> out = arrays_like(a.tensors(), arrays, true, guard);
            const GilRelease no_gil;
            a.result(out, total_weight);
          },
          py::arg("arrays"), py::arg("total_weight"));

  m.def("encode", &encode_tensors, py::arg("tensors"), py::arg("options"),
        py::arg("commit") = py::none());
  m.def("decode", &decode_tensors, py::arg("payload"), py::arg("digest"), py::arg("tensors"),
        py::arg("commit") = py::none());
  m.def(
      "add_values",
      [](const PythonPayload& payload, const TensorColumns& columns) {
        ResizeGuard guard;
        const std::vector<Tensor> tensors = tensors_from(columns, {.feedback = true}, guard);
        add_values(*payload, tensors);
      },
      py::arg("payload"), py::arg("tensors"));
  m.def(
      "count_changed",
      [](const TensorColumns& columns) {
        ResizeGuard guard;
        const std::vector<Tensor> tensors =
            tensors_from(columns, {.current = true, .reference = true}, guard);
        const GilRelease no_gil;
        return count_elems(tensors, changed(tensors));
      },
      py::arg("tensors"));
  m.def(
      "moments",
      [](const TensorColumns& columns) {
        ResizeGuard guard;
        const std::vector<Tensor> tensors =
            tensors_from(columns, {.current = true, .reference = true}, guard);
        const GilRelease no_gil;
        return moments(tensors);
      },
      py::arg("tensors"));
  m.def(
      "crc32c",
      [](const py::bytes& data) { return crc32c(data_of(view(data)), view(data).size()); },
      py::arg("data"));
  m.def("overlaps", &overlaps, py::arg("out"), py::arg("reference"));
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
  m.def("trace", &trace, py::arg("indices"), py::arg("levels"), py::arg("matrices"),
        py::arg("lane_log2"));
  m.def("trace_changes",
        py::overload_cast<const std::vector<uint64_t>&, const std::vector<int64_t>&, unsigned>(
            &trace_changes),
        py::arg("indices"), py::arg("levels"), py::arg("lane_log2"));
}

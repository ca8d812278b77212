// The part of the module for CUDA devices. A build without CUDA has only DeviceArray and
// cuda_unavailable_reason().
#include <pybind11/numpy.h>

#include "bindings/device_array.hpp"
#include "bindings/gil.hpp"

#if defined(RESFED_CUDA)
#include "bindings/commit.hpp"
#include "bindings/payload.hpp"
#include "bindings/tensors.hpp"
#include "cuda/aggregate.hpp"
#include "cuda/codec.hpp"
#include "cuda/workspace.hpp"
#endif

namespace py = pybind11;

namespace resfed {

namespace {

// An array over memory of `owner`, a Python object, which it keeps alive.
DeviceArray from_pointer(uintptr_t pointer, std::vector<int64_t> shape, const std::string& dtype,
                         int device, const py::object& owner, std::optional<uintptr_t> stream) {
  DeviceArray array;
  array.stream = stream.value_or(kUnknownStream);
  array.owner = std::shared_ptr<void>(owner.inc_ref().ptr(), [](void* object) {
    const GilAcquire gil;
    Py_DECREF(static_cast<PyObject*>(object));
  });
  array.data = reinterpret_cast<void*>(pointer);
  array.shape = std::move(shape);
  array.type = dlpack_type(dtype);
  array.device = device;
  return array;
}

// The same memory as elements of another dtype of the same size.
DeviceArray view_as(const DeviceArray& array, const std::string& dtype) {
  DeviceArray view = array;
  view.type = dlpack_type(dtype);
  if (view.type.bits != array.type.bits) throw py::type_error("sizes differ: " + dtype);
  return view;
}

std::string text_of(const DeviceArray& array) {
  std::string text = "<DeviceArray of " + array.dtype() + " [";
  for (size_t i = 0; i < array.shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(array.shape[i]);
  }
  return text + "] on cuda:" + std::to_string(array.device) + ">";
}

}  // namespace

#if defined(RESFED_CUDA)
namespace {

cuda::Stream stream_of(uintptr_t stream) { return reinterpret_cast<cuda::Stream>(stream); }

DeviceArray empty_array(std::vector<int64_t> shape, const std::string& dtype, int device) {
  DeviceArray array;
  array.shape = std::move(shape);
  array.type = dlpack_type(dtype);
  array.device = device;
  array.owner = cuda::allocate(device, array.n_bytes());
  array.data = array.owner.get();
  array.stream = kAnyStream;
  return array;
}

// Throws ValueError unless all bytes of the one may be copied to the other.
void check_copy(const DeviceArray& on_device, const py::array& on_host) {
  if (static_cast<uint64_t>(on_host.nbytes()) != on_device.n_bytes()) {
    throw py::value_error("sizes differ");
  }
  if (!on_device.contiguous || (on_host.flags() & py::array::c_style) == 0) {
    throw py::value_error("not C-contiguous");
  }
}

// Whether the memory may be used on another stream as soon as its owner frees it.
bool uses_other_stream(const DeviceArray& array, uintptr_t stream) {
  return array.stream != stream && array.stream != kAnyStream;
}

bool any_uses_other_stream(const TensorColumns& columns, uintptr_t stream) {
  bool any = false;
  columns.for_each_array([&](py::handle h) {
    any = any || (h && py::isinstance<DeviceArray>(h) &&
                  uses_other_stream(h.cast<const DeviceArray&>(), stream));
  });
  return any;
}

// Waits for the stream at the end of a call, also of a failed one, where arrays belong to another
// stream: their owners may free them then.
class StreamWait {
 public:
  StreamWait(bool other_stream, int device, uintptr_t stream)
      : other_stream_(other_stream), device_(device), stream_(stream) {}
  ~StreamWait() {
    if (!other_stream_) return;
    try {
      cuda::wait(device_, stream_of(stream_));
    } catch (const Failure&) {  // the next call reports it
    }
  }
  StreamWait(const StreamWait&) = delete;
  StreamWait& operator=(const StreamWait&) = delete;

 private:
  bool other_stream_;
  int device_;
  uintptr_t stream_;
};

void to_host(const DeviceArray& from, py::array to, uintptr_t stream) {
  void* const data = to.mutable_data();
  check_copy(from, to);
  const GilRelease no_gil;
  cuda::copy_to_host(data, from.data, from.n_bytes(), from.device, stream_of(stream));
}

void to_device(const py::array& from, const DeviceArray& to, uintptr_t stream) {
  const void* const data = from.data();
  check_copy(to, from);
  const GilRelease no_gil;
  cuda::copy_to_device(to.data, data, to.n_bytes(), to.device, stream_of(stream));
}

void on_device(const DeviceArray& from, const DeviceArray& to, uintptr_t stream) {
  if (from.n_bytes() != to.n_bytes()) throw py::value_error("sizes differ");
  if (from.device != to.device) throw py::value_error("devices differ");
  if (!from.contiguous || !to.contiguous) throw py::value_error("not C-contiguous");
  const GilRelease no_gil;
  const bool other_stream = uses_other_stream(from, stream) || uses_other_stream(to, stream);
  const StreamWait wait(other_stream, to.device, stream);
  cuda::copy_on_device(to.data, from.data, to.n_bytes(), to.device, stream_of(stream));
}

// `allocate(device, n_bytes)` returns a DeviceArray, or None.
void set_allocator(const py::object& allocate) {
  cuda::set_allocator([allocate = allocate.inc_ref().ptr()](int device, size_t n_bytes) {
    const GilAcquire gil;
    const py::object made = py::handle(allocate)(device, n_bytes);
    if (made.is_none()) return std::shared_ptr<void>();
    const auto& array = made.cast<const DeviceArray&>();
    return std::shared_ptr<void>(array.owner, array.data);
  });
}

// Returns when the stream has done all its work.
void wait(int device, uintptr_t stream) {
  const GilRelease no_gil;
  cuda::wait(device, stream_of(stream));
}

std::pair<uint64_t, uint64_t> count_changed_on_device(const TensorColumns& columns, int device,
                                                      uintptr_t stream) {
  ResizeGuard guard;
  const std::vector<Tensor> tensors =
      tensors_from(columns, {.current = true, .reference = true}, guard, device);
  const bool other_stream = any_uses_other_stream(columns, stream);
  const GilRelease no_gil;
  const StreamWait wait(other_stream, device, stream);
  return count_elems(tensors, cuda::changed(tensors, device, stream_of(stream)));
}

py::object encode_on_device(const TensorColumns& columns, const EncodeOptions& options, int device,
                            uintptr_t stream, const py::object& plan) {
  ResizeGuard guard;
  const std::vector<Tensor> tensors =
      tensors_from(columns, {.current = true, .reference = true}, guard, device);
  const bool other_stream = any_uses_other_stream(columns, stream);
  py::object payload;
  Commit commit(plan);
  const GilRelease no_gil;
  const StreamWait wait(other_stream, device, stream);
  cuda::encode(tensors, options, device, stream_of(stream), [&](const std::vector<uint8_t>& bytes) {
    const GilAcquire gil;
    payload = to_bytes(bytes);
    commit(payload);
  });
  return payload;
}

void decode_on_device(const PythonPayload& payload, uint64_t digest, const TensorColumns& columns,
                      int device, uintptr_t stream, const py::object& plan) {
  ResizeGuard guard;
  const std::vector<Tensor> tensors = tensors_from(columns, {.reference = true}, guard, device);
  const bool other_stream = any_uses_other_stream(columns, stream);
  Commit commit(plan);
  const GilRelease no_gil;
  const StreamWait wait(other_stream, device, stream);
  cuda::decode(*payload, digest, tensors, device, stream_of(stream), [&] {
    const GilAcquire gil;
    commit();
  });
}

// The calls of an aggregator: each waits for the stream, whatever happens, so that arrays and
// contributions may be freed afterwards.
void bind_aggregator(py::module_& m) {
  using cuda::Aggregator, cuda::Contribution;
  py::class_<Contribution>(m, "DeviceContribution");
  py::class_<Aggregator>(m, "DeviceAggregator")
      .def(py::init([](const TensorColumns& columns, std::vector<bool> is_signed, int device,
                       uintptr_t stream) {
             if (is_signed.size() != columns.size())
               throw py::value_error("is_signed: one per tensor");
             ResizeGuard guard;
             std::vector<Tensor> tensors =
                 tensors_from(columns, {.reference = true}, guard, device);
             const GilRelease no_gil;
             return std::make_unique<Aggregator>(std::move(tensors), std::move(is_signed), device,
                                                 stream_of(stream));
           }),
           py::arg("tensors"), py::arg("is_signed"), py::arg("device"), py::arg("stream"),
           py::keep_alive<1, 2>())
      .def(
          "prepare",
          [](const Aggregator& a, const PythonPayload& payload, uint64_t digest, double weight,
             uintptr_t stream) {
            const GilRelease no_gil;
            const StreamWait wait(true, a.device(), stream);
            return a.prepare(*payload, digest, weight, stream_of(stream));
          },
          py::arg("payload"), py::arg("digest"), py::arg("weight"), py::arg("stream"))
      .def(
          "prepare_state",
          [](const Aggregator& a, const py::sequence& arrays, double weight, uintptr_t stream) {
            ResizeGuard guard;
            const std::vector<void*> state =
                arrays_like(a.tensors(), arrays, false, guard, a.device());
            const GilRelease no_gil;
            const StreamWait wait(true, a.device(), stream);
            return a.prepare({state.begin(), state.end()}, weight, stream_of(stream));
          },
          py::arg("arrays"), py::arg("weight"), py::arg("stream"))
      .def(
          "add",
          [](Aggregator& a, Contribution& contribution, Contribution* replaced,
             const py::object& plan, uintptr_t stream) {
            Commit commit(plan);
            const GilRelease no_gil;
            const StreamWait wait(true, a.device(), stream);
            a.add(&contribution, replaced, stream_of(stream), [&] {
              const GilAcquire gil;
              commit();
            });
          },
          py::arg("contribution"), py::arg("replaced"), py::arg("commit"), py::arg("stream"))
      .def(
          "result",
          [](const Aggregator& a, const py::sequence& arrays, double total_weight,
             uintptr_t stream) {
            ResizeGuard guard;
            const std::vector<void*> out =
                arrays_like(a.tensors(), arrays, true, guard, a.device());
            const GilRelease no_gil;
            const StreamWait wait(true, a.device(), stream);
            a.result(out, total_weight, stream_of(stream));
          },
          py::arg("arrays"), py::arg("total_weight"), py::arg("stream"));
}

}  // namespace
#endif

void bind_device(py::module_& m) {
  py::class_<DeviceArray>(m, "DeviceArray",
                          "An array in C order on a CUDA device: what the codec returns where a "
                          "library's own arrays cannot be written to.\n\n"
                          "It speaks DLPack: the library's from_dlpack() takes it without a copy.")
      .def_static("from_dlpack", &from_dlpack, py::arg("capsule"), py::arg("stream") = py::none())
      .def_static("from_pointer", &from_pointer, py::arg("pointer"), py::arg("shape"),
                  py::arg("dtype"), py::arg("device"), py::arg("owner"),
                  py::arg("stream") = py::none())
      .def("view", &view_as, py::arg("dtype"))
      .def("__repr__", &text_of)
      .def_property_readonly("dtype", &DeviceArray::dtype)
      .def_property_readonly("shape",
                             [](const DeviceArray& a) { return py::tuple(py::cast(a.shape)); })
      .def_property_readonly("size", &DeviceArray::n_elems)
      .def_property_readonly("nbytes", &DeviceArray::n_bytes)
      .def_property_readonly("itemsize", [](const DeviceArray& a) { return a.type.bits / 8; })
      .def_readonly("device", &DeviceArray::device)
      .def_readonly("contiguous", &DeviceArray::contiguous)
      .def_property_readonly(
          "pointer", [](const DeviceArray& a) { return reinterpret_cast<uintptr_t>(a.data); })
      .def("__dlpack__", [](const DeviceArray& a, const py::kwargs&) { return to_dlpack(a); })
      .def(
          "flat",
          [](const DeviceArray& a, int64_t begin, int64_t n) {
            const uint64_t size = a.n_elems();
            if (begin < 0 || n < 0 || static_cast<uint64_t>(n) > size ||
                static_cast<uint64_t>(begin) > size - static_cast<uint64_t>(n)) {
              throw py::index_error("beyond the array");
            }
            DeviceArray part = a;
            part.data = static_cast<char*>(a.data) + begin * a.type.bits / 8;
            part.shape = {n};
            return part;
          },
          py::arg("begin"), py::arg("n"))
      .def("__dlpack_device__", [](const DeviceArray& a) {
        return py::make_tuple(static_cast<int>(dlpack::kCuda), a.device);
      });
#if defined(RESFED_CUDA)
  m.def("cuda_unavailable_reason", &cuda::unavailable_reason);
  m.def("cuda_error_text", &cuda::error_text, py::arg("error"));
  m.def("cuda_is_emulated", &cuda::is_emulated);
  m.def("emulate", &cuda::emulate, py::arg("what"), py::arg("value") = 0);
  m.def("set_allocator", &set_allocator, py::arg("allocate"));
  m.def("release_workspace", [] {
    const GilRelease no_gil;  // a running call may need the GIL to end
    cuda::release_workspace();
  });
  m.def("empty_on_device", &empty_array, py::arg("shape"), py::arg("dtype"), py::arg("device"));
  m.def("copy_to_host", &to_host, py::arg("source"), py::arg("out"), py::arg("stream"));
  m.def("copy_to_device", &to_device, py::arg("source"), py::arg("out"), py::arg("stream"));
  m.def("copy_on_device", &on_device, py::arg("source"), py::arg("out"), py::arg("stream"));
  m.def("wait", &wait, py::arg("device"), py::arg("stream"));
  m.def("count_changed_on_device", &count_changed_on_device, py::arg("tensors"), py::arg("device"),
        py::arg("stream"));
  m.def("encode_on_device", &encode_on_device, py::arg("tensors"), py::arg("options"),
        py::arg("device"), py::arg("stream"), py::arg("commit") = py::none());
  m.def("decode_on_device", &decode_on_device, py::arg("payload"), py::arg("digest"),
        py::arg("tensors"), py::arg("device"), py::arg("stream"), py::arg("commit") = py::none());
  bind_aggregator(m);
#else
  m.def("cuda_unavailable_reason", [] { return "it was built without CUDA"; });
#endif
}

}  // namespace resfed

// Arrays on a CUDA device, exchanged with other libraries by DLPack, version 0 of its ABI, which
// all libraries still export (https://dmlc.github.io/dlpack/latest/c_api.html).
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/gil.hpp"
#include "cuda/device.hpp"

namespace resfed {

namespace dlpack {

constexpr int32_t kCuda = 2, kCudaManaged = 13;

struct Device {
  int32_t type;
  int32_t number;
};
struct DataType {
  uint8_t kind;  // 0 int, 1 unsigned, 2 float, 4 bfloat, 6 bool
  uint8_t bits;
  uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  int32_t n_dims;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: C-contiguous
  uint64_t byte_offset;
};
struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

}  // namespace dlpack

// Instead of a stream: unknown; or any, where freeing the memory waits for the whole device.
constexpr uintptr_t kUnknownStream = ~uintptr_t{0};
constexpr uintptr_t kAnyStream = ~uintptr_t{0} - 1;

struct DeviceArray {
  std::shared_ptr<void> owner;
  void* data = nullptr;
  std::vector<int64_t> shape;
  dlpack::DataType type{};
  int device = 0;
  bool contiguous = true;
  uintptr_t stream = kUnknownStream;  // on which freed memory is used again

  uint64_t n_elems() const {
    uint64_t n = 1;
    for (const int64_t extent : shape) n *= static_cast<uint64_t>(extent);
    return n;
  }
  uint64_t n_bytes() const { return n_elems() * type.bits / 8; }

  // The dtype's name in NumPy and torch, or DLPack's numbers where they have none.
  std::string dtype() const {
    if (type.kind == 6 && type.bits == 8) return "bool";
    static const char* const kinds[] = {"int", "uint", "float", nullptr, "bfloat"};
    if (type.kind > 4 || kinds[type.kind] == nullptr || type.lanes != 1 || type.bits % 8 != 0) {
      return "DLPack type " + std::to_string(type.kind) + " of " + std::to_string(type.bits) +
             " bits in " + std::to_string(type.lanes) + " lanes";
    }
    return kinds[type.kind] + std::to_string(type.bits);
  }
};

inline dlpack::DataType dlpack_type(const std::string& dtype) {
  if (dtype == "bool") return {6, 8, 1};
  uint8_t kind = 0;
  for (const char* name : {"int", "uint", "float", "", "bfloat"}) {
    const std::string digits = dtype.substr(std::min(std::string(name).size(), dtype.size()));
    if (*name != 0 && dtype.starts_with(name) && !digits.empty() &&
        digits.find_first_not_of("0123456789") == std::string::npos) {
      return {kind, static_cast<uint8_t>(std::stoi(digits)), 1};
    }
    ++kind;
  }
  throw pybind11::type_error("no dtype: " + dtype);
}

// Takes ownership of what another library's __dlpack__() returned.
inline DeviceArray from_dlpack(const pybind11::capsule& capsule, std::optional<uintptr_t> stream) {
  if (std::string(capsule.name() == nullptr ? "" : capsule.name()) != "dltensor") {
    throw pybind11::type_error("not a DLPack capsule, or one that was used before");
  }
  auto* const managed = capsule.get_pointer<dlpack::ManagedTensor>();
  const dlpack::Tensor& tensor = managed->tensor;
  if (tensor.device.type != dlpack::kCuda && tensor.device.type != dlpack::kCudaManaged) {
    throw pybind11::type_error("DLPack device type " + std::to_string(tensor.device.type) +
                               " is not CUDA");
  }
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  DeviceArray array;
  array.owner = std::shared_ptr<void>(managed, [](void* m) {
    auto* const tensor = static_cast<dlpack::ManagedTensor*>(m);
    if (tensor->deleter == nullptr) return;
    const GilAcquire gil;  // the deleter may drop a Python reference
    tensor->deleter(tensor);
  });
  array.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  array.shape.assign(tensor.shape, tensor.shape + tensor.n_dims);
  array.type = tensor.dtype;
  array.device = tensor.device.number;
  array.stream = stream.value_or(kUnknownStream);
  int64_t expected = 1;
  for (int32_t i = tensor.n_dims - 1; tensor.strides != nullptr && i >= 0; --i) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) array.contiguous = false;
    expected *= tensor.shape[i];
  }
  if (array.n_elems() == 0) array.contiguous = true;
  return array;
}

inline pybind11::capsule to_dlpack(const DeviceArray& array) {
  struct Exported {
    dlpack::ManagedTensor managed;
    DeviceArray array;
  };
  auto* const exported = new Exported{{}, array};
  exported->managed.tensor = {exported->array.data,
                              {dlpack::kCuda, array.device},
                              static_cast<int32_t>(array.shape.size()),
                              array.type,
                              exported->array.shape.data(),
                              nullptr,
                              0};
  exported->managed.context = exported;
  exported->managed.deleter = [](dlpack::ManagedTensor* m) {
    delete static_cast<Exported*>(m->context);
  };
  return pybind11::capsule(
      static_cast<void*>(&exported->managed), "dltensor", [](PyObject* capsule) {
        if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // another library owns it now
        auto* const m =
            static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
        m->deleter(m);
      });
}

void bind_device(pybind11::module_& m);

}  // namespace resfed

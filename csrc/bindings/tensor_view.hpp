// Python's rows as resfed::Tensor. Whatever Python hands over, a call reads and writes inside the
// arrays that it was given: every length, item size and pointer is compared here.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "api.hpp"
#include "bindings/device_array.hpp"

namespace resfed {

// Where the arrays of a call lie: on the host, or on the CUDA device of this number.
constexpr int kOnHost = -1;

// What a call wants of a row.
struct RowNeeds {
  bool current = false;
  bool reference = false;
  bool out = false;
  bool feedback = false;  // of matrices and vectors; else it is optional
};

// The NumPy arrays of a call, which keep their memory as long as this lives: NumPy refuses to
// resize an array that has weak references, even with refcheck=False. Ends under Python's lock.
class Held {
 public:
  // False if the array lies outside the memory of the one it is a view of, which was resized.
  bool add(const pybind11::array& array) {
    namespace py = pybind11;
    py::object owner = array;
    for (py::object base = array.base(); base && py::isinstance<py::array>(base);
         base = py::reinterpret_borrow<py::array>(owner).base()) {
      owner = base;
    }
    const auto memory = py::reinterpret_borrow<py::array>(owner);
    if (!memory.owndata()) return true;  // such arrays cannot be resized
    const auto begin = reinterpret_cast<uintptr_t>(memory.data());
    const auto first = reinterpret_cast<uintptr_t>(array.data());
    const auto n_bytes = static_cast<uintptr_t>(array.nbytes());
    const uintptr_t end = begin + static_cast<uintptr_t>(memory.nbytes());
    if (n_bytes > 0 && (first < begin || first > end || n_bytes > end - first)) return false;
    references_.push_back(
        py::reinterpret_steal<py::object>(PyWeakref_NewRef(owner.ptr(), nullptr)));
    if (!references_.back()) throw py::error_already_set();
    return true;
  }

 private:
  std::vector<pybind11::object> references_;
};

namespace detail {

// Says which array of which row is wrong, and how.
class RowError {
 public:
  RowError(size_t row, const char* field) : row_(row), field_(field) {}

  [[noreturn]] void value(const std::string& what) const {
    throw pybind11::value_error(where() + what);
  }
  [[noreturn]] void type(const std::string& what) const {
    throw pybind11::type_error(where() + what);
  }

 private:
  std::string where() const { return "row " + std::to_string(row_) + ": " + field_ + " "; }

  size_t row_;
  const char* field_;
};

// The memory of an array of n_elems items of elem_bytes each, in C order; null for None.
inline void* memory_of(pybind11::handle h, uint64_t n_elems, uint32_t elem_bytes, bool to_write,
                       int device, const RowError& error, Held& held) {
  namespace py = pybind11;
  const auto check = [&](uint64_t n, uint64_t item_bytes) {
    if (n == n_elems && item_bytes == elem_bytes) return;
    error.value("has " + std::to_string(n) + " elements of " + std::to_string(item_bytes) +
                " bytes, not " + std::to_string(n_elems) + " of " + std::to_string(elem_bytes));
  };
  if (h.is_none()) return nullptr;
  if (device != kOnHost) {
    if (!py::isinstance<DeviceArray>(h)) error.type("is no DeviceArray");
    const auto& array = h.cast<const DeviceArray&>();
    if (array.device != device) {
      error.value("lies on cuda:" + std::to_string(array.device) +
                  ", not on cuda:" + std::to_string(device));
    }
    if (!array.contiguous) error.value("is not C-contiguous");
    check(array.n_elems(), array.type.bits / 8);
    return array.data;
  }
  if (!py::isinstance<py::array>(h)) error.type("is no numpy.ndarray");
  const auto array = py::reinterpret_borrow<py::array>(h);
  if (array.dtype().kind() == 'O') error.type("holds Python objects");
  constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  constexpr int kInOrder = py::array::c_style;
  constexpr int kPlain = kAligned | kInOrder;
  if (array.size() > 0 && (array.flags() & kPlain) != kPlain) {
    error.value("is not C-contiguous and aligned");
  }
  check(static_cast<uint64_t>(array.size()), static_cast<uint64_t>(array.itemsize()));
  if (to_write && !array.writeable()) error.value("is read-only");
  if (!held.add(array)) error.value("is a view of an array that was resized");
  return const_cast<void*>(array.data());
}

inline bool is_float32(pybind11::handle h) {
  if (pybind11::isinstance<DeviceArray>(h)) {
    const dlpack::DataType type = h.cast<const DeviceArray&>().type;
    return type.kind == 2 && type.bits == 32;
  }
  const auto dtype = pybind11::reinterpret_borrow<pybind11::array>(h).dtype();
  return dtype.kind() == 'f' && dtype.itemsize() == 4;
}

}  // namespace detail

// Rows are (current, reference, out, n_elems, elem_bytes, dtype, role[, feedback, terms]): arrays
// in C order, all on `device`, None for none; terms are (array, coefficient). Throws ValueError or
// TypeError, naming the row, unless each array has n_elems elements of the row's size (feedback:
// float32), role and dtype agree, and all that the call needs is there.
inline std::vector<Tensor> tensors_from(const pybind11::sequence& rows, RowNeeds needs, Held& held,
                                        int device = kOnHost) {
  namespace py = pybind11;
  std::vector<Tensor> tensors;
  tensors.reserve(rows.size());
  size_t n_with_feedback = 0, n_without = 0;
  for (const py::handle row : rows) {
    const size_t number = tensors.size();
    const auto t = row.cast<py::tuple>();
    if (t.size() != 7 && t.size() != 9) throw py::value_error("a row has 7 or 9 fields");
    Tensor& tensor = tensors.emplace_back();
    tensor.n_elems = t[3].cast<uint64_t>();
    tensor.elem_bytes = t[4].cast<uint32_t>();
    const auto dtype = t[5].cast<uint8_t>(), role = t[6].cast<uint8_t>();
    if (dtype > static_cast<uint8_t>(DType::kFloat64) || role > static_cast<uint8_t>(Role::kDense))
      throw py::value_error("row " + std::to_string(number) + ": unknown dtype or role");
    tensor.dtype = static_cast<DType>(dtype);
    tensor.role = static_cast<Role>(role);
    const bool lossy = tensor.role != Role::kLossless;
    const uint32_t size = tensor.elem_bytes;
    if (lossy ? size != dtype_size(tensor.dtype)
              : size != 1 && size != 2 && size != 4 && size != 8) {
      throw py::value_error("row " + std::to_string(number) + ": elements of " +
                            std::to_string(size) + " bytes do not fit role and dtype");
    }
    const auto memory = [&](py::handle h, const char* field, bool wanted, bool to_write) {
      const detail::RowError error(number, field);
      if (wanted && h.is_none()) error.value("is missing");
      return detail::memory_of(h, tensor.n_elems, size, to_write, device, error, held);
    };
    tensor.current = memory(t[0], "current", needs.current, false);
    tensor.reference = memory(t[1], "reference", needs.reference, false);
    tensor.out = memory(t[2], "out", needs.out, true);

    const bool takes_feedback = tensor.role == Role::kMatrix || tensor.role == Role::kVector;
    const detail::RowError error(number, "feedback");
    if (t.size() == 9 && !t[7].is_none()) {
      if (!takes_feedback) error.value("is for matrices and vectors alone");
      tensor.feedback = static_cast<float*>(
          detail::memory_of(t[7], tensor.n_elems, sizeof(float), true, device, error, held));
      if (!detail::is_float32(t[7])) error.type("is not float32");
    }
    if (needs.feedback && takes_feedback && tensor.feedback == nullptr) error.value("is missing");
    if (takes_feedback && tensor.n_elems > 0) {
      ++(tensor.feedback == nullptr ? n_without : n_with_feedback);
    }
    if (t.size() == 7) continue;
    const auto terms = t[8].cast<py::tuple>();
    const detail::RowError wrong(number, "terms:");
    if (terms.size() > kMaxTerms) wrong.value("too many");
    if (!lossy && !terms.empty()) wrong.value("a lossless tensor has none");
    Prediction& prediction = tensor.prediction;
    for (const py::handle term : terms) {
      const auto pair = term.cast<py::tuple>();
      if (pair.size() != 2) wrong.value("are pairs");
      prediction.terms[prediction.n_terms] = memory(pair[0], "terms", true, false);
      prediction.coefficients[prediction.n_terms++] = pair[1].cast<float>();
    }
  }
  if (n_with_feedback > 0 && n_without > 0) {
    throw py::value_error("rows: some matrices and vectors have feedback and some have none");
  }
  return tensors;
}

// One array for each of the tensors, of its size, as add_state() and result() take them.
inline std::vector<void*> arrays_like(const std::vector<Tensor>& tensors,
                                      const pybind11::sequence& arrays, bool to_write, Held& held) {
  if (arrays.size() != tensors.size()) {
    throw pybind11::value_error(std::to_string(arrays.size()) + " arrays for " +
                                std::to_string(tensors.size()) + " tensors");
  }
  std::vector<void*> result;
  result.reserve(tensors.size());
  for (const pybind11::handle array : arrays) {
    const Tensor& t = tensors[result.size()];
    const detail::RowError error(result.size(), "array");
    if (array.is_none()) error.value("is missing");
    result.push_back(
        detail::memory_of(array, t.n_elems, t.elem_bytes, to_write, kOnHost, error, held));
  }
  return result;
}

}  // namespace resfed

// Python's tensors as resfed::Tensor. Whatever Python hands over, a call reads and writes inside
// the arrays that it was given: every length, item size and pointer is compared here, when the call
// runs.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api.hpp"
#include "bindings/constants.hpp"
#include "bindings/device_array.hpp"

namespace resfed {

// Where the arrays of a call lie: on the host, or on the CUDA device of this number.
constexpr int kOnHost = -1;

// What a call needs of each tensor.
struct CallNeeds {
  bool current = false;
  bool reference = false;
  bool out = false;
  bool feedback = false;  // of matrices and vectors; else it is optional
};

// Prevents that the NumPy arrays of a call are resized: NumPy refuses to resize an array that has
// weak references, even with refcheck=False. Destroyed with the GIL held.
class ResizeGuard {
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

// Says which array of which tensor is wrong, and how.
class ArrayError {
 public:
  ArrayError(size_t tensor, const char* field) : tensor_(tensor), field_(field) {}

  [[noreturn]] void value(const std::string& what) const {
    throw pybind11::value_error(where() + what);
  }
  [[noreturn]] void type(const std::string& what) const {
    throw pybind11::type_error(where() + what);
  }

 private:
  std::string where() const { return "tensor " + std::to_string(tensor_) + ": " + field_ + " "; }

  size_t tensor_;
  const char* field_;
};

// The memory of an array of n_elems items of *elem_bytes each, in C order; null for None. Where
// *elem_bytes is 0 the array sets it, to 1, 2, 4 or 8.
inline void* memory_of(pybind11::handle h, uint64_t n_elems, uint32_t* elem_bytes, bool to_write,
                       int device, const ArrayError& error, ResizeGuard& guard) {
  namespace py = pybind11;
  const auto check = [&](uint64_t n, uint64_t item_bytes) {
    if (*elem_bytes == 0 && std::has_single_bit(item_bytes) && item_bytes <= 8) {
      *elem_bytes = static_cast<uint32_t>(item_bytes);
    }
    if (n == n_elems && item_bytes == *elem_bytes) return;
    const std::string expected = *elem_bytes == 0 ? "1, 2, 4 or 8" : std::to_string(*elem_bytes);
    error.value("has " + std::to_string(n) + " elements of " + std::to_string(item_bytes) +
                " bytes, not " + std::to_string(n_elems) + " of " + expected);
  };
  if (!h || h.is_none()) return nullptr;
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
  if (!guard.add(array)) error.value("is a view of an array that was resized");
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

// The tensors of a call as Python describes them, column by column: arrays in C order, None for
// none. A column of arrays may be left out. Immutable; keeps the arrays.
struct TensorColumns {
  using Arrays = std::vector<pybind11::object>;

  std::vector<Role> roles;
  std::vector<DType> dtypes;
  std::vector<uint64_t> n_elems;
  std::vector<uint64_t> row_lengths;  // of tensors of two dimensions; 0: of others
  Arrays current, reference, out, feedback;
  std::vector<Arrays> terms;  // of each tensor
  std::vector<std::vector<float>> coefficients;

  // Throws ValueError unless the columns have one length.
  TensorColumns(const std::vector<uint32_t>& role_numbers,
                const std::vector<uint32_t>& dtype_numbers, std::vector<uint64_t> lengths,
                std::optional<std::vector<uint64_t>> rows,
                std::array<std::optional<Arrays>, 4> arrays,
                std::optional<std::vector<Arrays>> terms_of,
                std::optional<std::vector<std::vector<float>>> coefficients_of)
      : n_elems(std::move(lengths)) {
    for (const uint32_t n : role_numbers) roles.push_back(to_enum(n, Role::kDense, "Role"));
    for (const uint32_t n : dtype_numbers) dtypes.push_back(to_enum(n, DType::kOther, "DType"));
    Arrays* const columns[] = {&current, &reference, &out, &feedback};
    for (size_t i = 0; i < arrays.size(); ++i) fill(*columns[i], std::move(arrays[i]));
    fill(row_lengths, std::move(rows));
    for (size_t i = 0; i < row_lengths.size(); ++i) {
      if (row_lengths[i] > 0 && n_elems[i] % row_lengths[i] != 0) {
        throw pybind11::value_error("tensor " + std::to_string(i) + ": rows of " +
                                    std::to_string(row_lengths[i]) + " elements, of " +
                                    std::to_string(n_elems[i]));
      }
    }
    fill(terms, std::move(terms_of));
    fill(coefficients, std::move(coefficients_of));
    if (roles.size() != size() || dtypes.size() != size()) refuse();
    for (size_t i = 0; i < size(); ++i) {
      if (roles[i] != Role::kLossless && dtypes[i] == DType::kOther) {
        throw pybind11::value_error("tensor " + std::to_string(i) + ": no float, but not lossless");
      }
    }
  }

  size_t size() const { return n_elems.size(); }

  // Calls visit(array) with every array, and with None.
  template <class Visit>
  void for_each_array(Visit visit) const {
    for (const Arrays* column : {&current, &reference, &out, &feedback}) {
      for (const pybind11::object& array : *column) visit(array);
    }
    for (const Arrays& of_tensor : terms) {
      for (const pybind11::object& array : of_tensor) visit(array);
    }
  }

 private:
  template <class Column>
  void fill(Column& column, std::optional<Column> given) const {
    if (given) column = std::move(*given);
    if (!given) column.resize(size());
    if (column.size() != size()) refuse();
  }
  [[noreturn]] static void refuse() {
    throw pybind11::value_error("tensors: columns of different lengths");
  }
};

// The columns as tensors, all on `device`. Throws ValueError or TypeError, naming the tensor,
// unless each array has n_elems elements of the dtype's size (of kOther, of one size; feedback:
// float32), and all that the call needs is there.
inline std::vector<Tensor> tensors_from(const TensorColumns& columns, CallNeeds needs,
                                        ResizeGuard& guard, int device = kOnHost) {
  std::vector<Tensor> tensors;
  tensors.reserve(columns.size());
  size_t n_with_feedback = 0, n_without = 0;
  for (size_t i = 0; i < columns.size(); ++i) {
    Tensor& tensor = tensors.emplace_back();
    tensor.n_elems = columns.n_elems[i];
    tensor.dtype = columns.dtypes[i];
    tensor.role = columns.roles[i];
    tensor.row_length = columns.row_lengths[i];
    const bool lossy = tensor.role != Role::kLossless;
    const bool has_dtype = tensor.dtype != DType::kOther;
    tensor.elem_bytes = has_dtype ? dtype_size(tensor.dtype) : 0;  // 0: the first array says
    const auto memory = [&](pybind11::handle h, const char* field, bool wanted, bool to_write) {
      const detail::ArrayError error(i, field);
      if (wanted && (!h || h.is_none())) error.value("is missing");
      return detail::memory_of(h, tensor.n_elems, &tensor.elem_bytes, to_write, device, error,
                               guard);
    };
    tensor.current = memory(columns.current[i], "current", needs.current, false);
    tensor.reference = memory(columns.reference[i], "reference", needs.reference, false);
    tensor.out = memory(columns.out[i], "out", needs.out, true);

    const bool takes_feedback = tensor.role == Role::kMatrix || tensor.role == Role::kVector;
    const detail::ArrayError error(i, "feedback");
    uint32_t float_bytes = sizeof(float);
    tensor.feedback = static_cast<float*>(detail::memory_of(
        columns.feedback[i], tensor.n_elems, &float_bytes, true, device, error, guard));
    const bool has_feedback = columns.feedback[i] && !columns.feedback[i].is_none();
    if (has_feedback && !takes_feedback) error.value("is for matrices and vectors alone");
    if (has_feedback && !detail::is_float32(columns.feedback[i])) error.type("is not float32");
    if (!has_feedback && needs.feedback && takes_feedback) error.value("is missing");
    if (takes_feedback && tensor.n_elems > 0) ++(has_feedback ? n_with_feedback : n_without);

    const size_t n_terms = columns.terms[i].size();
    const detail::ArrayError wrong(i, "terms:");
    if (n_terms > kMaxTerms) wrong.value("too many");
    if (n_terms != columns.coefficients[i].size()) wrong.value("one coefficient for each");
    if (!lossy && n_terms > 0) wrong.value("a lossless tensor has none");
    Prediction& prediction = tensor.prediction;
    for (const pybind11::object& term : columns.terms[i]) {
      prediction.coefficients[prediction.n_terms] = columns.coefficients[i][prediction.n_terms];
      prediction.terms[prediction.n_terms++] = memory(term, "terms", true, false);
    }
  }
  for (Tensor& tensor : tensors) tensor.elem_bytes = std::max(tensor.elem_bytes, 1u);
  if (n_with_feedback > 0 && n_without > 0) {
    throw pybind11::value_error(
        "feedback: some matrices and vectors have feedback and some have none");
  }
  return tensors;
}

// How many elements the matrices and the vectors of which `wanted` is true have.
inline std::pair<uint64_t, uint64_t> count_elems(const std::vector<Tensor>& tensors,
                                                 const std::vector<bool>& wanted) {
  uint64_t n_matrix = 0, n_vector = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (wanted[i]) (tensors[i].role == Role::kMatrix ? n_matrix : n_vector) += tensors[i].n_elems;
  }
  return {n_matrix, n_vector};
}

inline void bind_tensors(pybind11::module_& m) {
  namespace py = pybind11;
  using Arrays = TensorColumns::Arrays;
  py::class_<TensorColumns>(m, "Tensors")
      .def(py::init([](const std::vector<uint32_t>& roles, const std::vector<uint32_t>& dtypes,
                       std::vector<uint64_t> n_elems,
                       std::optional<std::vector<uint64_t>> row_lengths,
                       std::optional<Arrays> current, std::optional<Arrays> reference,
                       std::optional<Arrays> out, std::optional<Arrays> feedback,
                       std::optional<std::vector<Arrays>> terms,
                       std::optional<std::vector<std::vector<float>>> coefficients) {
             return TensorColumns(
                 roles, dtypes, std::move(n_elems), std::move(row_lengths),
                 {std::move(current), std::move(reference), std::move(out), std::move(feedback)},
                 std::move(terms), std::move(coefficients));
           }),
           py::kw_only(), py::arg("roles"), py::arg("dtypes"), py::arg("n_elems"),
           py::arg("row_lengths") = py::none(), py::arg("current") = py::none(),
           py::arg("reference") = py::none(), py::arg("out") = py::none(),
           py::arg("feedback") = py::none(), py::arg("terms") = py::none(),
           py::arg("coefficients") = py::none())
      .def("__len__", &TensorColumns::size)
      .def_readonly("n_elems", &TensorColumns::n_elems)
      .def_readonly("row_lengths", &TensorColumns::row_lengths)
      .def_readonly("current", &TensorColumns::current)
      .def_readonly("reference", &TensorColumns::reference)
      .def_property_readonly("roles", [](const TensorColumns& t) { return numbers(t.roles); })
      .def_property_readonly("dtypes", [](const TensorColumns& t) { return numbers(t.dtypes); });
}

// One array for each of the tensors, of its size and on `device`, as add_state() and result() take
// them.
inline std::vector<void*> arrays_like(const std::vector<Tensor>& tensors,
                                      const pybind11::sequence& arrays, bool to_write,
                                      ResizeGuard& guard, int device = kOnHost) {
  if (arrays.size() != tensors.size()) {
    throw pybind11::value_error(std::to_string(arrays.size()) + " arrays for " +
                                std::to_string(tensors.size()) + " tensors");
  }
  std::vector<void*> result;
  result.reserve(tensors.size());
  for (const pybind11::handle array : arrays) {
    const Tensor& t = tensors[result.size()];
    uint32_t elem_bytes = t.elem_bytes;
    const detail::ArrayError error(result.size(), "array");
    if (array.is_none()) error.value("is missing");
    result.push_back(
        detail::memory_of(array, t.n_elems, &elem_bytes, to_write, device, error, guard));
  }
  return result;
}

}  // namespace resfed

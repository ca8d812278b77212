// Arrays of a call that share memory.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bindings/device_array.hpp"

namespace resfed {

namespace detail {

struct Span {
  uintptr_t begin = 0, end = 0;
  size_t ordinal = 0;
  bool written = false;

  bool same(const Span& other) const { return begin == other.begin && end == other.end; }
};

inline std::vector<Span> spans_of(const pybind11::sequence& arrays, bool written) {
  namespace py = pybind11;
  std::vector<Span> spans;
  spans.reserve(arrays.size());
  for (const py::handle h : arrays) {
    const auto add = [&](const void* data, uint64_t n_bytes) {
      const auto begin = reinterpret_cast<uintptr_t>(data);
      spans.push_back({begin, begin + n_bytes, spans.size(), written});
    };
    if (py::isinstance<py::array>(h)) {
      const auto array = py::reinterpret_borrow<py::array>(h);
      add(array.data(), static_cast<uint64_t>(array.nbytes()));
    } else if (py::isinstance<DeviceArray>(h)) {
      const auto& array = h.cast<const DeviceArray&>();
      add(array.data, array.n_bytes());
    } else {
      throw py::type_error("neither a numpy.ndarray nor a DeviceArray");
    }
  }
  return spans;
}

}  // namespace detail

// What writing `out` would change besides, of arrays in C order: a tuple of
//   whether all of `out` are the same memory as those of equal place in `reference`;
//   pairs (i, j, whether they are the same memory) of arrays of `out` that share some;
//   pairs (i, j): array i of `out` shares some with array j of `reference`. The same memory as that
//   of its own place does not count.
// Where many overlap, each is in a pair, but not every pair is there.
inline pybind11::tuple overlaps(const pybind11::sequence& out,
                                const pybind11::sequence& reference) {
  namespace py = pybind11;
  using detail::Span;
  std::vector<Span> spans = detail::spans_of(out, true);
  bool in_place = out.size() == reference.size();
  for (const Span& span : detail::spans_of(reference, false)) {
    if (span.ordinal < out.size() && span.same(spans[span.ordinal])) continue;
    spans.push_back(span);
    in_place = false;
  }
  std::erase_if(spans, [](const Span& span) { return span.begin == span.end; });
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.ordinal < b.ordinal;
  });

  py::list of_out, of_reference;
  Span written, read;  // those so far that reach furthest
  for (const Span& span : spans) {
    if (span.begin < written.end && span.written) {
      of_out.append(py::make_tuple(written.ordinal, span.ordinal, span.same(written)));
    } else if (span.begin < written.end) {
      of_reference.append(py::make_tuple(written.ordinal, span.ordinal));
    }
    if (span.written && span.begin < read.end) {
      of_reference.append(py::make_tuple(span.ordinal, read.ordinal));
    }
    Span& furthest = span.written ? written : read;
    if (span.end > furthest.end) furthest = span;
  }
  return py::make_tuple(in_place, of_out, of_reference);
}

}  // namespace resfed

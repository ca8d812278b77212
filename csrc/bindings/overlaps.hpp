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

// Which arrays, in C order, share memory, so that writing to `out` would change another one. A
// tuple:
//   whether each array of `out` is the same memory as the array of `reference` at its place;
//   pairs of arrays of `out` that overlap: (i, j, whether they are the same memory);
//   pairs (i, j): array i of `out` overlaps array j of `reference`, without the pairs (i, i) that
//   are the same memory.
// Where many arrays overlap, each is in a pair, but not every pair is listed.
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

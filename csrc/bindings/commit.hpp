// Sets attributes of Python objects in one step with native writes.
//
// An exception (an interrupt, one that another thread sends, a tracer's) may come between any two
// steps of a Python program. Where native code writes to memory that a Python object describes, the
// object's new attributes are therefore set here, just before the write, which cannot fail.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "bindings/gil.hpp"

namespace resfed {

// Constructed, called and destroyed with the GIL held; destroyed after the write.
class Commit {
 public:
  // `plan` is called at the last moment and returns assignments: a sequence of tuples
  // (object, attribute name, value) or (dict, key, value). None plans nothing.
  explicit Commit(pybind11::object plan) : plan_(std::move(plan)) {}
  Commit(const Commit&) = delete;
  Commit& operator=(const Commit&) = delete;

  // All or nothing. Passes on what the plan or a signal handler throws. Replaced values live until
  // this object is destroyed, so that no finalizer runs before the write.
  template <class... Arguments>
  void operator()(const Arguments&... arguments) {
    pybind11::sequence assignments = pybind11::tuple();
    if (!plan_.is_none()) assignments = plan_(arguments...);
    std::vector<Assignment> made;
    for (const pybind11::handle item : assignments) {
      const auto parts = pybind11::reinterpret_borrow<pybind11::sequence>(item);
      made.push_back({parts[0], parts[1], parts[2]});
    }
    handle_signals();
    for (size_t i = 0; i < made.size(); ++i) {
      if (made[i].exchange()) continue;
      const pybind11::error_already_set error;
      while (i > 0) made[--i].exchange();
      throw error;
    }
    replaced_ = std::move(made);
  }

 private:
  struct Assignment {
    pybind11::object target, name, value;

    // Swaps the value with the present one, null where there is none. False: it failed, and
    // Python's error is set.
    bool exchange() {
      PyObject* const place = target.ptr();
      const bool is_item = PyDict_Check(place);
      pybind11::object before;
      if (is_item) {
        before = pybind11::reinterpret_borrow<pybind11::object>(
            PyDict_GetItemWithError(place, name.ptr()));
        if (!before && PyErr_Occurred()) return false;
      } else {
        before = pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttr(place, name.ptr()));
        if (!before) return false;
      }
      const int status = !is_item ? PyObject_SetAttr(place, name.ptr(), value.ptr())
                         : value  ? PyDict_SetItem(place, name.ptr(), value.ptr())
                                  : PyDict_DelItem(place, name.ptr());
      if (status == 0) value = std::move(before);
      return status == 0;
    }
  };

  pybind11::object plan_;
  std::vector<Assignment> replaced_;
};

}  // namespace resfed

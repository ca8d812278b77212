// Python's global lock, given back during native work and taken again.
//
// When the interpreter ends, a thread that wants the lock is ended by an unwinding that destructors
// must not let through: the process would abort. Such a thread stays where it is instead, until the
// process is gone; from Python 3.14 on it does so by itself.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace resfed {

template <class Take>
auto take_lock(Take take) {
  try {
    return take();
  } catch (...) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked() {
    take_lock([this] { PyEval_RestoreThread(state_); });
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};

class Locked {
 public:
  Locked() : state_(take_lock([] { return PyGILState_Ensure(); })) {}
  ~Locked() { PyGILState_Release(state_); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  PyGILState_STATE state_;
};

// Interrupts and failures of Python itself come before anything is written, so that they leave
// nothing half done.
inline void handle_signals() {
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}

inline pybind11::object to_bytes(const std::vector<uint8_t>& bytes) {
  auto made = pybind11::reinterpret_steal<pybind11::object>(PyBytes_FromStringAndSize(
      reinterpret_cast<const char*>(bytes.data()), static_cast<Py_ssize_t>(bytes.size())));
  if (!made) throw pybind11::error_already_set();
  return made;
}

}  // namespace resfed

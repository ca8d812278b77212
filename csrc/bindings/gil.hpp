// Python's global lock (GIL): released during native work, and acquired again.
//
// When the interpreter shuts down, Python ends a thread that acquires the GIL by unwinding its
// stack. A destructor must not let that pass, or the process aborts. Such a thread sleeps instead
// until the process ends. From Python 3.14 on Python itself does this.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace resfed {

template <class Take>
auto acquire_or_sleep(Take take) {
  try {
    return take();
  } catch (...) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() {
    acquire_or_sleep([this] { PyEval_RestoreThread(state_); });
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

class GilAcquire {
 public:
  GilAcquire() : state_(acquire_or_sleep([] { return PyGILState_Ensure(); })) {}
  ~GilAcquire() { PyGILState_Release(state_); }
  GilAcquire(const GilAcquire&) = delete;
  GilAcquire& operator=(const GilAcquire&) = delete;

 private:
  PyGILState_STATE state_;
};

// Runs the handlers of pending signals. Called before anything is written, so that an interrupt
// leaves nothing half done.
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

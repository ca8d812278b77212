#include "cpu/threads.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "api.hpp"
#include "cpu/float_mode.hpp"

namespace resfed {
namespace {

// As torch: OMP_NUM_THREADS if it is set, else the processors this process may use.
int default_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const int n = std::atoi(text);
    if (n >= 1) return n;
  }
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::atomic<int> chosen_threads{0};

}  // namespace

int num_threads() {
  const int n = chosen_threads.load();
  if (n > 0) return n;
  static const int fallback = default_threads();
  return fallback;
}

void set_num_threads(int n) { chosen_threads.store(n); }

void parallel_for(size_t n_tasks, TaskRef task, size_t tasks_per_thread) {
#if defined(RESFED_EAGER_THREADS)  // for tests: threads for work that is not worth them
  tasks_per_thread = 1;
#endif
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  size_t error_task = n_tasks;

  const auto work = [&] {
    const DefaultFloatMode mode;
    for (size_t i; (i = next.fetch_add(1)) < n_tasks;) {
      try {
        task(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (i < error_task) error = std::current_exception(), error_task = i;
      }
    }
  };

  std::vector<std::thread> helpers;
  const size_t n_threads = std::min(n_tasks / tasks_per_thread, static_cast<size_t>(num_threads()));
  try {
    if (n_threads > 1) helpers.reserve(n_threads - 1);
    for (size_t t = 1; t < n_threads; ++t) helpers.emplace_back(work);
  } catch (const std::exception&) {  // no more threads, or no memory for them
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace resfed

// parallel_for: tasks 0..n-1, taken in order by threads made for the call. No pool outlives a call,
// so there is nothing to survive a fork and nothing shared between concurrent calls. Results never
// depend on the number of threads because tasks are cut by the data alone. Where no more threads or
// no memory for them can be had, those that run do all the work.
#pragma once

#include <cstddef>
#include <type_traits>

namespace resfed {

// A function of a task's number, borrowed for the call. Unlike std::function it takes no memory, so
// tasks that only write what has been computed cannot fail before they start.
class TaskRef {
 public:
  template <class Task>
    requires(!std::is_same_v<Task, TaskRef>)
  TaskRef(const Task& task)
      : task_(&task),
        call_([](const void* called, size_t i) { (*static_cast<const Task*>(called))(i); }) {}
  void operator()(size_t i) const { call_(task_, i); }

 private:
  const void* task_;
  void (*call_)(const void*, size_t);
};

// Runs task(i) for every i, in the default float mode. A further thread is made for every
// `tasks_per_thread` tasks, as many as are worth its making. If tasks throw, the exception of the
// lowest i is rethrown after all threads have ended, so errors are as reproducible as results.
void parallel_for(size_t n_tasks, TaskRef task, size_t tasks_per_thread = 16);

}  // namespace resfed

// parallel_for: tasks 0..n-1, dealt in order to threads made for the call. No pool outlives a call,
// so there is nothing to survive a fork and nothing shared between concurrent calls. Results never
// depend on the number of threads because tasks are cut by the data alone.
#pragma once

#include <functional>

namespace resfed {

// Runs task(i) for every i, in the default float mode. A further thread is made for every
// `tasks_per_thread` tasks, as many as are worth its making. If tasks throw, the exception of the
// lowest i is rethrown after all threads have ended, so errors are as reproducible as results.
void parallel_for(size_t n_tasks, const std::function<void(size_t)>& task,
                  size_t tasks_per_thread = 16);

}  // namespace resfed

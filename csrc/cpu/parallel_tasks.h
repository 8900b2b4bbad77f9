// Tasks shared out over threads.
#pragma once

#include <ATen/Parallel.h>

#include "core/dtypes.h"

namespace fusedtricks::cpu {

// Runs task(i) for i in [0, tasks); neighbouring tasks run on one thread. How the work is cut into tasks must not
// depend on the number of threads: then neither do the results.
template <class F>
void parallel_tasks(int64_t tasks, const F& task) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

// The same, but each thread starts with its last task: its data is what an earlier sweep read last.
template <class F>
void parallel_tasks_reversed(int64_t tasks, const F& task) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = end; i-- > begin;) task(i);
  });
}

}  // namespace fusedtricks::cpu

// Tasks on threads.
#pragma once

#include <ATen/Parallel.h>

#include "core/dtypes.h"

namespace fusedtricks::cpu {

// Runs task(i) for i in [0, tasks), neighbours on one thread. What a task does must not depend on the thread: results
// are then the same for any number of threads.
template <class F>
void parallel_tasks(int64_t tasks, const F& task) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

// The same in descending order within a thread: over what a sweep before it read last.
template <class F>
void parallel_tasks_reversed(int64_t tasks, const F& task) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = end; i-- > begin;) task(i);
  });
}

}  // namespace fusedtricks::cpu

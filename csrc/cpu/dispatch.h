// From run-time dtypes and task counts to templates and threads.
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/ScalarType.h>

#include "element.h"

namespace fusedtricks::cpu {

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<T>) for the element type; operators have checked that it is one of these.
template <class F>
void visit_dtype(at::ScalarType dtype, F&& f) {
  switch (dtype) {
    case at::kFloat:
      return f(Type<float>{});
    case at::kDouble:
      return f(Type<double>{});
    case at::kBFloat16:
      return f(Type<c10::BFloat16>{});
    default:
      return f(Type<c10::Half>{});
  }
}

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

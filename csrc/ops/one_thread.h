// Forked processes. OpenMP's threads do not survive a fork, and a child that asks for them waits for ever; so a child
// runs every call of ours on the thread that makes it.
#pragma once

#include <ATen/Parallel.h>

namespace fusedtricks {

// Whether this process was forked from one that had this library loaded. (One that loads it later cannot know.)
bool is_forked();

// In a forked process, keeps calls of this library and of ATen on one thread for as long as it lives.
class OneThreadIfForked {
 public:
  OneThreadIfForked() {
    if (!is_forked()) return;
    threads_ = at::get_num_threads();
    if (threads_ > 1) at::set_num_threads(1);
  }
  ~OneThreadIfForked() {
    if (threads_ > 1) at::set_num_threads(threads_);
  }
  OneThreadIfForked(const OneThreadIfForked&) = delete;
  OneThreadIfForked& operator=(const OneThreadIfForked&) = delete;

 private:
  int threads_ = 0;
};

}  // namespace fusedtricks

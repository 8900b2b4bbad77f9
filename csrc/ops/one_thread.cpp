#include "ops/one_thread.h"

#include <pthread.h>

namespace fusedtricks {
namespace {

bool forked = false;

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

bool is_forked() { return forked; }

}  // namespace fusedtricks

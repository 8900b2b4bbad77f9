// What the kernels of the activations alone are given: n elements of raw memory, in any order.
#pragma once

#include <c10/core/ScalarType.h>

#include "activations.h"

namespace fusedtricks {

struct ActivationCall {
  Activation act;
  c10::ScalarType dtype;
  int64_t n;
};

namespace backend {

// y = act(x); they may be the same memory.
void activation_forward(const ActivationCall& call, const void* x, void* y);
// dx = dy * act', at x or read off the result: whichever `kept` is.
void activation_backward(const ActivationCall& call, const void* dy, const void* kept, void* dx);
// out = g * d act' / d kept.
void activation_backward_slope(const ActivationCall& call, const void* g, const void* kept, void* out);

}  // namespace backend
}  // namespace fusedtricks

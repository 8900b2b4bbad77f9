// What the kernels of the activations alone are given: n elements of raw memory, in any order.
#pragma once

#include <c10/core/ScalarType.h>

#include "calls/kernel.h"
#include "core/activation_functions.h"

namespace fusedtricks {

struct ActivationCall {
  Activation act;
  c10::ScalarType dtype;
  int64_t n;
};

namespace kernels {

// y = act(x); they may be the same memory.
inline const Kernel<void(const ActivationCall& call, const void* x, void* y)> activation_forward{"activation_forward"};
// dx = dy * act', at x or read off the result: whichever `kept` is.
inline const Kernel<void(const ActivationCall& call, const void* dy, const void* kept, void* dx)> activation_backward{
    "activation_backward"};
// out = g * d act' / d kept.
inline const Kernel<void(const ActivationCall& call, const void* g, const void* kept, void* out)> activation_grad_grad{
    "activation_grad_grad"};

}  // namespace kernels
}  // namespace fusedtricks

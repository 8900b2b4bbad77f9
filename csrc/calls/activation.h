// Arguments of the kernels of the activations alone: n elements in any order.
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

// y = act(x). y may be x.
inline const Kernel<void(const ActivationCall& call, const void* x, void* y)> activation_forward{"activation_forward"};
// dx = dy * act'. `kept` is the result if the activation keeps it, otherwise the input.
inline const Kernel<void(const ActivationCall& call, const void* dy, const void* kept, void* dx)> activation_backward{
    "activation_backward"};
// out = g * (derivative of act' with respect to `kept`).
inline const Kernel<void(const ActivationCall& call, const void* g, const void* kept, void* out)> activation_grad_grad{
    "activation_grad_grad"};

}  // namespace kernels
}  // namespace fusedtricks

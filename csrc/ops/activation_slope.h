// The derivatives of the activations in differentiable operations, for gradients of third and higher order.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/activation_functions.h"

namespace fusedtricks {

// dy/dx where the backward reads it: at x, or at y for an activation that keeps its result.
at::Tensor activation_slope(const Activation& act, const at::Tensor& kept);

}  // namespace fusedtricks

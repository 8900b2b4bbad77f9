// Gradients of compositions of differentiable operations, for gradients of higher order.
#pragma once

#include <torch/csrc/autograd/autograd.h>

namespace fusedtricks {

using at::Tensor;
using Tensors = torch::autograd::variable_list;

// gradient(outputs, inputs, grads). Undefined inputs, and those that nothing depends on, have an undefined gradient.
Tensors gradients_of(const Tensors& outputs, const Tensors& inputs, const Tensors& grads, bool create_graph);

// A variable to take gradients with respect to: they stop there, and leave out what t itself was computed from.
Tensor as_variable(const Tensor& t);

}  // namespace fusedtricks

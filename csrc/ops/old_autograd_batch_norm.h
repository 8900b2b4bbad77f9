// What the autograd functions of the BatchNorms share.
#pragma once

#include "ops/old_autograd.h"

namespace fusedtricks::autograd {

struct BatchNormAttributes {
  NamedActivation act;
  bool training;
  double eps;
  std::optional<double> p{};  // of dropout, where there is one
};

struct Statistics {
  const OptionalTensor &running_mean, &running_var, &num_batches_tracked;
  std::optional<double> momentum;

  // For whoever kept them, once a call in training has changed them.
  void bump_versions() const;
};

// weight * (x - mean) * rstd + bias, in differentiable ATen operations; mean and rstd are used in evaluation alone.
Tensor normalize(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& rstd,
                 bool training, double eps);

// gradient(outputs, inputs, grads) where undefined inputs and those that nothing depends on come back undefined.
variable_list gradients_of(const variable_list& outputs, const variable_list& inputs, const variable_list& grads,
                           bool create_graph);

// A variable to take gradients with respect to: they stop there, and leave out what t itself was computed from.
Tensor as_variable(const Tensor& t);

}  // namespace fusedtricks::autograd

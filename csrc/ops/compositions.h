// Operators that others are composed of, as functions.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "core/activation_functions.h"

namespace fusedtricks {

// dropout(input), inverted, and what its mask follows from.
std::tuple<at::Tensor, at::Tensor> call_dropout(const at::Tensor& input, double p, std::optional<int64_t> seed);
// The same mask and scale on another tensor of that shape.
at::Tensor call_dropout_backward(const at::Tensor& grad_output, const at::Tensor& rng_state, double p);

at::Tensor call_activation(const at::Tensor& input, const Activation& act);
at::Tensor call_activation_backward(const at::Tensor& grad_output, const at::Tensor& saved, const Activation& act);
at::Tensor call_activation_grad_grad(const at::Tensor& grad, const at::Tensor& saved, const Activation& act);

}  // namespace fusedtricks

// The checks of dropout's relatives.
#pragma once

#include <array>

#include "checks/arguments.h"

namespace fusedtricks {

// The same where the first mask_dims dimensions have a mask of their own, of one value each.
inline DropRate check_feature_dropout(const at::Tensor& input, const OptionalTensor& residual, int64_t mask_dims,
                                      double p, std::string_view mode) {
  check_floating(input, "feature_dropout", "input");
  TORCH_CHECK_VALUE(0 <= mask_dims && mask_dims <= 2, "mask_dims has to be 0 (one value), 1 (a value per sample) or ",
                    "2 (a value per channel), but got ", mask_dims);
  TORCH_CHECK(mask_dims <= input.dim(), "input has ", input.dim(), " dimensions; it takes at least ", mask_dims);
  if (residual) check_like(*residual, input, "residual", "input");
  return check_dropout(p, mode);
}

// RuntimeError unless bias, where given, has a value per index of input's last dimension, (F), or per channel,
// (C, 1, ...) with as many dimensions as a sample.
inline void check_bias(const OptionalTensor& bias, const at::Tensor& input) {
  if (!bias) return;
  check_device(*bias, input, "bias");
  const bool of_last = bias->dim() == 1 && input.dim() >= 1 && bias->sym_size(0) == input.sym_size(-1);
  bool of_channels = bias->dim() > 1 && bias->dim() == input.dim() - 1 && bias->sym_size(0) == input.sym_size(1);
  for (int64_t d = 1; d < bias->dim(); ++d) of_channels = of_channels && bias->sym_size(d) == 1;
  TORCH_CHECK(of_last || of_channels, "bias has shape ", bias->sym_sizes(), "; with input of shape ", input.sym_sizes(),
              " it takes (", input.dim() ? input.sym_size(-1) : c10::SymInt(1), ",) for the last dimension",
              input.dim() > 2 ? " or (C, 1, ...) for the channels" : "");
  check_parameter_dtype(*bias, input, "bias");
}

inline DropRate check_act_dropout(const at::Tensor& input, const OptionalTensor& bias, const OptionalTensor& residual,
                                  double p) {
  check_floating(input, "act_dropout", "input");
  check_bias(bias, input);
  if (residual) check_like(*residual, input, "residual", "input");
  return check_dropout(p, "inverted");
}

// RuntimeError unless a backward's tensors fit the gradient that it is given.
inline DropRate check_act_dropout_backward(const at::Tensor& grad_output, const OptionalTensor& input,
                                           const OptionalTensor& output, const OptionalTensor& bias,
                                           const OptionalTensor& rng_state, const Activation& act, double p,
                                           std::array<bool, 2> output_mask) {
  check_floating(grad_output, "act_dropout_backward", "grad_output");
  if (input) check_like(*input, grad_output, "input", "grad_output");
  if (output) check_like(*output, grad_output, "output", "grad_output");
  if (rng_state) check_rng_state(*rng_state, grad_output);
  check_bias(bias, grad_output);
  TORCH_CHECK(input || output || act.is_identity(), "act_dropout_backward: ", act.info().name,
              " takes input, or output where the derivative can be read off it");
  TORCH_CHECK(!output_mask[1] || bias, "act_dropout_backward: a gradient of bias takes bias");
  return check_dropout(p, "inverted");
}

// RuntimeError unless matrices that a linear layer multiplies.
inline void check_dropped_linear(const at::Tensor& input, const at::Tensor& weight, double p) {
  check_floating(input, "dropped_linear", "input");
  check_probability(p);
  check_device(weight, input, "weight");
  TORCH_CHECK(input.dim() == 2 && weight.dim() == 2 && input.sym_size(1) == weight.sym_size(1), "input has shape ",
              input.sym_sizes(), ", weight ", weight.sym_sizes(), "; they take two matrices of as many columns");
  TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "weight has dtype ", weight.scalar_type(),
              "; it takes that of input, ", input.scalar_type());
}

}  // namespace fusedtricks

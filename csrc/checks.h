// The arguments' checks, shared by every backend. Each names the argument, what it got and what it takes, and raises
// the class that stock PyTorch raises for the same mistake. They run before anything is written.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>

#include "activations.h"

namespace fusedtricks {

using OptionalTensor = std::optional<at::Tensor>;

// The activation of that name with its parameters; ValueError where there is none.
inline Activation check_activation(std::string_view name, at::ArrayRef<double> arguments) {
  const int index = find_activation(name);
  if (index < 0) {
    std::string known;
    for (const auto* info : Activations<double>::info) known += std::string(known.empty() ? "" : ", ") + info->name;
    TORCH_CHECK_VALUE(false, "act: unknown activation '", std::string(name), "'; known are: ", known);
  }
  Activation act{index, {}};
  const int count = act.info().parameter_count();
  TORCH_CHECK_VALUE(int64_t(arguments.size()) == count, "act_args: ", act.info().name, " takes ", count,
                    " parameters, got ", arguments.size());
  for (int i = 0; i < count; ++i) act.parameters[i] = arguments[i];
  return act;
}

// NotImplementedError unless float, double, bfloat16 or half.
inline void check_floating(const at::Tensor& t, const char* op, const char* name) {
  const auto type = t.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf,
                              op, ": ", name, " of dtype ", type,
                              " is not supported; it takes float32, float64, bfloat16 or float16");
}

inline void check_device(const at::Tensor& t, const at::Tensor& input, const char* name) {
  TORCH_CHECK(t.device() == input.device(), name, " is on device ", t.device(), ", input on ", input.device(),
              "; they must be on one device");
}

// RuntimeError unless t has model's shape, dtype and device.
inline void check_like(const at::Tensor& t, const at::Tensor& model, const char* name, const char* model_name) {
  check_device(t, model, name);
  TORCH_CHECK(t.sym_sizes() == model.sym_sizes(), name, " has shape ", t.sym_sizes(), "; it takes that of ", model_name,
              ", ", model.sym_sizes());
  TORCH_CHECK(t.scalar_type() == model.scalar_type(), name, " has dtype ", t.scalar_type(), "; it takes that of ",
              model_name, ", ", model.scalar_type());
}

// RuntimeError unless t, where given, holds one value per channel in a dtype that goes with the input's.
inline void check_per_channel(const OptionalTensor& t, const at::Tensor& input, const char* name) {
  if (!t) return;
  check_device(*t, input, name);
  TORCH_CHECK(t->dim() == 1 && t->sym_size(0) == input.sym_size(1), name, " should contain ", input.sym_size(1),
              " elements, one per channel of input; got shape ", t->sym_sizes());
  const auto type = input.scalar_type();
  const bool reduced = type == at::kBFloat16 || type == at::kHalf;
  TORCH_CHECK(t->scalar_type() == type || (reduced && t->scalar_type() == at::kFloat), name, " has dtype ",
              t->scalar_type(), "; with input of dtype ", type, " it takes ", type, reduced ? " or Float" : "");
}

// ValueError unless 0 <= p <= 1.
inline void check_probability(double p) {
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, "dropout probability p has to be between 0 and 1, but got ", p);
}

struct BatchNormArguments {
  const at::Tensor& input;
  const OptionalTensor &running_mean, &running_var, &num_batches_tracked, &weight, &bias, &residual;
  bool training;
  std::optional<double> momentum;
  double eps;
};

inline void check_running_statistics(const BatchNormArguments& a) {
  TORCH_CHECK_VALUE(a.running_mean.has_value() == a.running_var.has_value() || !a.training,
                    "running_mean and running_var must either both be None or neither be None");
  TORCH_CHECK(a.training || a.running_mean, "running_mean must be defined in evaluation mode");
  TORCH_CHECK(a.training || a.running_var, "running_var must be defined in evaluation mode");
  check_per_channel(a.running_mean, a.input, "running_mean");
  check_per_channel(a.running_var, a.input, "running_var");
  if (!a.training || !a.running_mean) return;
  if (a.momentum) {
    TORCH_CHECK_VALUE(*a.momentum >= 0 && *a.momentum <= 1, "momentum has to be between 0 and 1, or None for a ",
                      "cumulative average, but got ", *a.momentum);
  } else {
    TORCH_CHECK_VALUE(a.num_batches_tracked, "momentum=None (a cumulative average) needs num_batches_tracked");
  }
  if (a.num_batches_tracked) {
    const at::Tensor& count = *a.num_batches_tracked;
    check_device(count, a.input, "num_batches_tracked");
    TORCH_CHECK(count.dim() == 0 && count.scalar_type() == at::kLong, "num_batches_tracked has shape ",
                count.sym_sizes(), " and dtype ", count.scalar_type(), "; it takes a scalar of dtype Long");
  }
}

inline void check_batch_norm(const BatchNormArguments& a) {
  const at::Tensor& x = a.input;
  check_floating(x, "batch_norm_act", "input");
  TORCH_CHECK_INDEX(x.dim() >= 2, "input has ", x.dim(), " dimensions; it takes at least 2, (N, C) or (N, C, *)");
  check_per_channel(a.weight, x, "weight");
  check_per_channel(a.bias, x, "bias");
  if (a.residual) check_like(*a.residual, x, "residual", "input");
  check_running_statistics(a);
  TORCH_CHECK_VALUE(a.eps >= 0, "batch_norm eps must be non-negative, but got ", a.eps);
  if (!a.training) return;
  TORCH_CHECK_VALUE(a.eps > 0, "batch_norm eps must be positive during training, but got ", a.eps);
  c10::SymInt per_channel = x.sym_size(0);
  for (int64_t d = 2; d < x.dim(); ++d) per_channel *= x.sym_size(d);
  TORCH_CHECK_VALUE(per_channel != 1, "Expected more than 1 value per channel when training, got input size ",
                    x.sym_sizes());
}

// RuntimeError unless a backward's tensors fit the input they belong to.
inline void check_batch_norm_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                      const OptionalTensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& residual, const OptionalTensor& output,
                                      const at::Tensor& save_mean, const at::Tensor& save_rstd) {
  check_floating(input, "batch_norm_act_backward", "input");
  check_like(grad_output, input, "grad_output", "input");
  check_per_channel(weight, input, "weight");
  check_per_channel(bias, input, "bias");
  if (residual) check_like(*residual, input, "residual", "input");
  if (output) check_like(*output, input, "output", "input");
  for (const at::Tensor* t : {&save_mean, &save_rstd}) {
    const char* name = t == &save_mean ? "save_mean" : "save_rstd";
    check_device(*t, input, name);
    TORCH_CHECK(t->dim() == 1 && t->sym_size(0) == input.sym_size(1) && t->scalar_type() == at::kDouble, name,
                " takes one float64 value per channel of input");
  }
}

// ValueError where a result behind dropout was kept that does not tell the activation's derivative.
inline void check_kept_behind_dropout(const Activation& act, const OptionalTensor& output) {
  TORCH_CHECK_VALUE(!output || act.is_relu(), "output: after dropout that of ", act.info().name,
                    " does not tell its derivative; it takes none, and the residual");
}

// RuntimeError unless rng_state is an int64 tensor of two elements on grad's device.
inline void check_rng_state(const at::Tensor& rng_state, const at::Tensor& grad) {
  check_device(rng_state, grad, "rng_state");
  TORCH_CHECK(rng_state.dim() == 1 && rng_state.sym_size(0) == 2 && rng_state.scalar_type() == at::kLong,
              "rng_state takes an int64 tensor of two elements, seed and offset");
}

}  // namespace fusedtricks

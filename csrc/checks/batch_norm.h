// The checks of batch_norm_act.
#pragma once

#include <ATen/core/grad_mode.h>

#include <utility>

#include "checks/arguments.h"

namespace fusedtricks {

// Whether the kernels can count batches in a tensor: an int64 scalar, on the input's device.
inline bool is_countable(const OptionalTensor& count, const at::Tensor& input) {
  return !count || (count->dim() == 0 && count->scalar_type() == at::kLong && count->device() == input.device());
}

// Of an operator with the arguments of batch_norm_act.
template <class Op>
void check_running_statistics(const Op& a) {
  TORCH_CHECK_VALUE(a.running_mean.has_value() == a.running_var.has_value() || !a.training,
                    "running_mean and running_var must either both be None or neither be None");
  TORCH_CHECK(a.training || a.running_mean, "running_mean must be defined in evaluation mode");
  TORCH_CHECK(a.training || a.running_var, "running_var must be defined in evaluation mode");
  for (const auto& [t, name] : {std::pair(&a.running_mean, "running_mean"), std::pair(&a.running_var, "running_var")}) {
    check_per_channel(*t, a.input, name);
    TORCH_CHECK(!*t || !(*t)->requires_grad() || !at::GradMode::is_enabled(), name,
                " requires grad; statistics are not differentiable, it takes a tensor that does not");
  }
  if (a.training && a.num_batches_tracked) {
    const at::Tensor& count = *a.num_batches_tracked;
    check_device(count, a.input, "num_batches_tracked");
    TORCH_CHECK(count.dim() == 0 && count.scalar_type() == at::kLong, "num_batches_tracked has shape ",
                count.sym_sizes(), " and dtype ", count.scalar_type(), "; it takes a scalar of dtype Long");
  }
}

template <class Op>
void check_batch_norm(const Op& a) {
  const at::Tensor& x = a.input;
  check_floating(x, "batch_norm_act", "input");
  TORCH_CHECK_INDEX(x.dim() >= 2, "input has ", x.dim(), " dimensions; it takes at least 2, (N, C) or (N, C, *)");
  check_per_channel(a.weight, x, "weight");
  check_per_channel(a.bias, x, "bias");
  check_running_statistics(a);
  // NaN passes, as in stock.
  TORCH_CHECK_VALUE(!(a.eps < 0), "batch_norm eps must be non-negative, but got ", a.eps);
  if (!a.training) return;
  TORCH_CHECK_VALUE(!(a.eps <= 0), "batch_norm eps must be positive during training, but got ", a.eps);
  c10::SymInt per_channel = x.sym_size(0);
  for (int64_t d = 2; d < x.dim(); ++d) per_channel *= x.sym_size(d);
  TORCH_CHECK_VALUE(per_channel != 1, "Expected more than 1 value per channel when training, got input size ",
                    x.sym_sizes());
}

// RuntimeError unless both hold one float64 value per channel.
inline void check_saved_statistics(const at::Tensor& input, const at::Tensor& save_mean, const at::Tensor& save_rstd) {
  for (const at::Tensor* t : {&save_mean, &save_rstd}) {
    const char* name = t == &save_mean ? "save_mean" : "save_rstd";
    check_device(*t, input, name);
    TORCH_CHECK(t->dim() == 1 && t->sym_size(0) == input.sym_size(1) && t->scalar_type() == at::kDouble, name,
                " takes one float64 value per channel of input");
  }
}

// RuntimeError unless a backward's tensors fit the input they belong to.
template <class Op>
void check_batch_norm_backward(const Op& a) {
  check_floating(a.input, "batch_norm_act_backward", "input");
  check_like(a.grad_output, a.input, "grad_output", "input");
  check_per_channel(a.weight, a.input, "weight");
  check_per_channel(a.bias, a.input, "bias");
  if (a.residual) check_like(*a.residual, a.input, "residual", "input");
  if (a.output) check_like(*a.output, a.input, "output", "input");
  check_saved_statistics(a.input, a.save_mean, a.save_rstd);
}

// ValueError where a result behind dropout was kept that does not tell the activation's derivative.
inline void check_kept_behind_dropout(const Activation& act, const OptionalTensor& output) {
  TORCH_CHECK_VALUE(!output || act.result_shows_mask(), "output: after dropout that of ", act.info().name,
                    " does not tell its derivative; it takes none, and the residual");
}

}  // namespace fusedtricks

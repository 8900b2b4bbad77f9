// batch_norm_act for the tensors of one backend: checks, outputs and memory layout; the arithmetic is in the backend's
// kernels.
#include "batch_norm.h"

#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "../tensor_layout.h"

namespace fusedtricks {
namespace {

using at::Tensor;

const void* data_or_null(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// t laid out like model, undefined where there is none.
Tensor optional_laid_out_like(const OptionalTensor& t, const Tensor& model) {
  return t ? laid_out_like(*t, model) : Tensor();
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act(const Tensor& input, const OptionalTensor& running_mean,
                                                  const OptionalTensor& running_var,
                                                  const OptionalTensor& num_batches_tracked,
                                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                                  const OptionalTensor& residual, c10::string_view act,
                                                  at::ArrayRef<double> act_args, bool training,
                                                  std::optional<double> momentum, double eps) {
  const Activation activation = check_activation(act, act_args);
  check_batch_norm(
      {input, running_mean, running_var, num_batches_tracked, weight, bias, residual, training, momentum, eps});
  const c10::DeviceGuard guard(input.device());
  const Tensor y = empty_in_kernel_layout(input);
  const auto statistics = input.options().dtype(at::kDouble);
  if (input.numel() == 0) {
    // An empty batch counts, as it does in stock.
    if (training && running_mean && num_batches_tracked) num_batches_tracked->add_(1);
    return {y, at::zeros({input.size(1)}, statistics), at::zeros({input.size(1)}, statistics)};
  }
  const Tensor mean = at::empty({input.size(1)}, statistics), rstd = at::empty({input.size(1)}, statistics);
  const Tensor x = laid_out_like(input, y), r = optional_laid_out_like(residual, y);
  BatchNormForward a{layout_of(y),
                     x.scalar_type(),
                     activation,
                     x.const_data_ptr(),
                     data_or_null(r),
                     y.data_ptr(),
                     channel_values(weight),
                     channel_values(bias),
                     channel_values(running_mean),
                     channel_values(running_var),
                     num_batches_tracked ? num_batches_tracked->data_ptr<int64_t>() : nullptr,
                     mean.mutable_data_ptr<double>(),
                     rstd.mutable_data_ptr<double>(),
                     training,
                     momentum.value_or(-1),
                     eps,
                     nullptr};
  const Tensor memory = workspace(backend::batch_norm_forward_workspace(a), input);
  if (memory.defined()) a.workspace = memory.data_ptr();
  backend::batch_norm_forward(a);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& output, const Tensor& save_mean, const Tensor& save_rstd,
    c10::string_view act, at::ArrayRef<double> act_args, bool training, double /*eps*/,
    std::array<bool, 4> output_mask) {
  const Activation activation = check_activation(act, act_args);
  check_batch_norm_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd);
  const c10::DeviceGuard guard(input.device());
  const bool empty = input.numel() == 0;
  const auto parameter_gradient = [&](const OptionalTensor& parameter, bool wanted) {
    if (!wanted) return Tensor();
    const auto options = parameter ? parameter->options() : input.options();
    return empty ? at::zeros({input.size(1)}, options) : at::empty({input.size(1)}, options);
  };
  const bool after_residual = residual || output;
  const Tensor like = empty_in_kernel_layout(input);
  const Tensor dx = output_mask[0] ? like : Tensor();
  const Tensor dw = parameter_gradient(weight, output_mask[1]), db = parameter_gradient(bias, output_mask[2]);
  const Tensor dz = after_residual ? at::empty_like(like) : Tensor();
  const Tensor dr = output_mask[3] ? (after_residual ? dz : grad_output.clone()) : Tensor();
  if (empty) return {dx, dw, db, dr};

  const Tensor dy = laid_out_like(grad_output, like), x = laid_out_like(input, like);
  const Tensor y = optional_laid_out_like(output, like), r = optional_laid_out_like(residual, like);
  const Tensor mean = save_mean.contiguous(), rstd = save_rstd.contiguous();
  BatchNormBackward a{layout_of(like),
                      x.scalar_type(),
                      activation,
                      dy.const_data_ptr(),
                      x.const_data_ptr(),
                      data_or_null(y),
                      data_or_null(r),
                      dx.defined() ? dx.data_ptr() : nullptr,
                      dz.defined() ? dz.data_ptr() : nullptr,
                      channel_values(weight),
                      channel_values(bias),
                      channel_values(dw),
                      channel_values(db),
                      mean.const_data_ptr<double>(),
                      rstd.const_data_ptr<double>(),
                      training,
                      nullptr};
  const Tensor memory = workspace(backend::batch_norm_backward_workspace(a), input);
  if (memory.defined()) a.workspace = memory.data_ptr();
  backend::batch_norm_backward(a);
  return {dx, dw, db, dr};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, FUSEDTRICKS_BACKEND, m) {
  m.impl("batch_norm_act", batch_norm_act);
  m.impl("batch_norm_act_backward", batch_norm_act_backward);
}

}  // namespace fusedtricks

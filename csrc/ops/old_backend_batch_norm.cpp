// batch_norm_act for the tensors of one backend: checks, outputs and memory layout; the arithmetic is in the backend's
// kernels.
#include "ops/old_backend_batch_norm.h"

#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "ops/tensor_layout.h"

namespace fusedtricks {
namespace {

using at::Tensor;

const void* data_or_null(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// t laid out like model, undefined where there is none.
Tensor optional_laid_out_like(const OptionalTensor& t, const Tensor& model) {
  return t ? laid_out_like(*t, model) : Tensor();
}

// Dropout of the result; rng_state is undefined where there is none.
struct Dropout {
  DropRate rate{};
  std::optional<int64_t> seed{};
  Tensor rng_state{};
};

std::tuple<Tensor, Tensor, Tensor> forward(const BatchNormArguments& given, c10::string_view act,
                                           at::ArrayRef<double> act_args, const Dropout& dropout) {
  const Activation activation = check_activation(act, act_args);
  check_batch_norm(given);
  const Tensor& input = given.input;
  const c10::DeviceGuard guard(input.device());
  const Tensor y = empty_in_kernel_layout(input);
  const auto statistics = input.options().dtype(at::kDouble);
  if (input.numel() == 0) {
    // An empty batch counts, as it does in stock.
    if (given.training && given.running_mean && given.num_batches_tracked) given.num_batches_tracked->add_(1);
    if (dropout.rng_state.defined()) dropout.rng_state.zero_();
    return {y, at::zeros({input.size(1)}, statistics), at::zeros({input.size(1)}, statistics)};
  }
  const Tensor mean = at::empty({input.size(1)}, statistics), rstd = at::empty({input.size(1)}, statistics);
  const Tensor x = laid_out_like(input, y), r = optional_laid_out_like(given.residual, y);
  BatchNormForward a{layout_of(y),
                     x.scalar_type(),
                     activation,
                     x.const_data_ptr(),
                     data_or_null(r),
                     y.data_ptr(),
                     channel_values(given.weight),
                     channel_values(given.bias),
                     channel_values(given.running_mean),
                     channel_values(given.running_var),
                     given.num_batches_tracked ? given.num_batches_tracked->data_ptr<int64_t>() : nullptr,
                     mean.mutable_data_ptr<double>(),
                     rstd.mutable_data_ptr<double>(),
                     given.training,
                     given.momentum.value_or(-1),
                     given.eps,
                     nullptr,
                     dropout.rate,
                     dropout.seed,
                     dropout.rng_state.defined() ? dropout.rng_state.data_ptr<int64_t>() : nullptr};
  const Tensor memory = workspace(backend::batch_norm_forward_workspace(a), input);
  if (memory.defined()) a.workspace = memory.data_ptr();
  backend::batch_norm_forward(a);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act(const Tensor& input, const OptionalTensor& running_mean,
                                                  const OptionalTensor& running_var,
                                                  const OptionalTensor& num_batches_tracked,
                                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                                  const OptionalTensor& residual, c10::string_view act,
                                                  at::ArrayRef<double> act_args, bool training,
                                                  std::optional<double> momentum, double eps) {
  return forward(
      {input, running_mean, running_var, num_batches_tracked, weight, bias, residual, training, momentum, eps}, act,
      act_args, {});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_dropout(
    const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, c10::string_view act, at::ArrayRef<double> act_args, bool training,
    std::optional<double> momentum, double eps, double p, std::optional<int64_t> seed) {
  const Tensor rng_state = at::empty({2}, input.options().dtype(at::kLong));
  const auto [y, mean, rstd] =
      forward({input, running_mean, running_var, num_batches_tracked, weight, bias, residual, training, momentum, eps},
              act, act_args, {check_dropout(p, "inverted"), seed, rng_state});
  return {y, mean, rstd, rng_state};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                                    const OptionalTensor& weight, const OptionalTensor& bias,
                                                    const OptionalTensor& residual, const OptionalTensor& output,
                                                    const Tensor& save_mean, const Tensor& save_rstd,
                                                    c10::string_view act, at::ArrayRef<double> act_args, bool training,
                                                    std::array<bool, 4> output_mask, const Dropout& dropout) {
  const Activation activation = check_activation(act, act_args);
  check_batch_norm_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd);
  const c10::DeviceGuard guard(input.device());
  const bool empty = input.numel() == 0, drops = dropout.rng_state.defined();
  const auto parameter_gradient = [&](const OptionalTensor& parameter, bool wanted) {
    if (!wanted) return Tensor();
    const auto options = parameter ? parameter->options() : input.options();
    return empty ? at::zeros({input.size(1)}, options) : at::empty({input.size(1)}, options);
  };
  // Behind the identity the residual's gradient is dy, unless that is dropped.
  const bool drops_residual = drops && output_mask[3] && activation.is_identity();
  const bool after_residual = residual || output || drops_residual;
  const Tensor like = empty_in_kernel_layout(input);
  const Tensor dx = output_mask[0] ? like : Tensor();
  const Tensor dw = parameter_gradient(weight, output_mask[1]), db = parameter_gradient(bias, output_mask[2]);
  const Tensor dz = after_residual ? at::empty_like(like) : Tensor();
  const Tensor dr = output_mask[3] ? (after_residual ? dz : grad_output.clone()) : Tensor();
  if (empty) return {dx, dw, db, dr};

  const Tensor dy = laid_out_like(grad_output, like), x = laid_out_like(input, like);
  const Tensor y = drops_residual ? dy : optional_laid_out_like(output, like);
  const Tensor r = optional_laid_out_like(residual, like), state = drops ? dropout.rng_state.contiguous() : Tensor();
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
                      nullptr,
                      dropout.rate,
                      drops ? state.const_data_ptr<int64_t>() : nullptr};
  const Tensor memory = workspace(backend::batch_norm_backward_workspace(a), input);
  if (memory.defined()) a.workspace = memory.data_ptr();
  backend::batch_norm_backward(a);
  return {dx, dw, db, dr};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& output, const Tensor& save_mean, const Tensor& save_rstd,
    c10::string_view act, at::ArrayRef<double> act_args, bool training, double /*eps*/,
    std::array<bool, 4> output_mask) {
  return backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd, act, act_args, training,
                  output_mask, {});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_dropout_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& output, const Tensor& save_mean, const Tensor& save_rstd,
    const Tensor& rng_state, c10::string_view act, at::ArrayRef<double> act_args, bool training, double /*eps*/,
    double p, std::array<bool, 4> output_mask) {
  check_rng_state(rng_state, grad_output);
  check_kept_behind_dropout(check_activation(act, act_args), output);
  return backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd, act, act_args, training,
                  output_mask, {check_dropout(p, "inverted"), std::nullopt, rng_state});
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, FUSEDTRICKS_BACKEND, m) {
  m.impl("batch_norm_act", batch_norm_act);
  m.impl("batch_norm_act_backward", batch_norm_act_backward);
  m.impl("batch_norm_act_dropout", batch_norm_act_dropout);
  m.impl("batch_norm_act_dropout_backward", batch_norm_act_dropout_backward);
}

}  // namespace fusedtricks

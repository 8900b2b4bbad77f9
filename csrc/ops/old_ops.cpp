#include "ops/old_ops.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace fusedtricks::ops {
namespace {

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

// Each looks its operator up once.
#define FUSEDTRICKS_OPERATOR(name) static const auto op = find<decltype(name)>("fusedtricks::" #name)

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act(
    const at::Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, c10::string_view act, Doubles act_args, bool training,
    std::optional<double> momentum, double eps) {
  FUSEDTRICKS_OPERATOR(batch_norm_act);
  return op.call(input, running_mean, running_var, num_batches_tracked, weight, bias, residual, act, act_args, training,
                 momentum, eps);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& output, const at::Tensor& save_mean,
    const at::Tensor& save_rstd, c10::string_view act, Doubles act_args, bool training, double eps,
    std::array<bool, 4> output_mask) {
  FUSEDTRICKS_OPERATOR(batch_norm_act_backward);
  return op.call(grad_output, input, weight, bias, residual, output, save_mean, save_rstd, act, act_args, training, eps,
                 output_mask);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_max_pool2d(
    const at::Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, const OptionalTensor& weight, const OptionalTensor& bias,
    c10::string_view act, Doubles act_args, at::IntArrayRef kernel_size, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, bool training, std::optional<double> momentum,
    double eps) {
  FUSEDTRICKS_OPERATOR(batch_norm_act_max_pool2d);
  return op.call(input, running_mean, running_var, num_batches_tracked, weight, bias, act, act_args, kernel_size,
                 stride, padding, dilation, ceil_mode, training, momentum, eps);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_max_pool2d_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const at::Tensor& argmax, const at::Tensor& save_mean, const at::Tensor& save_rstd, c10::string_view act,
    Doubles act_args, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool ceil_mode, bool training, double eps, std::array<bool, 3> output_mask) {
  FUSEDTRICKS_OPERATOR(batch_norm_act_max_pool2d_backward);
  return op.call(grad_output, input, weight, bias, argmax, save_mean, save_rstd, act, act_args, kernel_size, stride,
                 padding, dilation, ceil_mode, training, eps, output_mask);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_dropout(
    const at::Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, c10::string_view act, Doubles act_args, bool training,
    std::optional<double> momentum, double eps, double p, std::optional<int64_t> seed) {
  FUSEDTRICKS_OPERATOR(batch_norm_act_dropout);
  return op.call(input, running_mean, running_var, num_batches_tracked, weight, bias, residual, act, act_args, training,
                 momentum, eps, p, seed);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_dropout_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& output, const at::Tensor& save_mean,
    const at::Tensor& save_rstd, const at::Tensor& rng_state, c10::string_view act, Doubles act_args, bool training,
    double eps, double p, std::array<bool, 4> output_mask) {
  FUSEDTRICKS_OPERATOR(batch_norm_act_dropout_backward);
  return op.call(grad_output, input, weight, bias, residual, output, save_mean, save_rstd, rng_state, act, act_args,
                 training, eps, p, output_mask);
}

at::Tensor activation(const at::Tensor& input, c10::string_view act, Doubles act_args) {
  FUSEDTRICKS_OPERATOR(activation);
  return op.call(input, act, act_args);
}

void activation_(const at::Tensor& input, c10::string_view act, Doubles act_args) {
  FUSEDTRICKS_OPERATOR(activation_);
  op.call(input, act, act_args);
}

at::Tensor activation_backward(const at::Tensor& grad_output, const at::Tensor& saved, c10::string_view act,
                               Doubles act_args) {
  FUSEDTRICKS_OPERATOR(activation_backward);
  return op.call(grad_output, saved, act, act_args);
}

at::Tensor activation_backward_slope(const at::Tensor& grad, const at::Tensor& saved, c10::string_view act,
                                     Doubles act_args) {
  FUSEDTRICKS_OPERATOR(activation_backward_slope);
  return op.call(grad, saved, act, act_args);
}

std::tuple<at::Tensor, at::Tensor> dropout(const at::Tensor& input, double p, c10::string_view mode,
                                           std::optional<int64_t> seed) {
  FUSEDTRICKS_OPERATOR(dropout);
  return op.call(input, p, mode, seed);
}

at::Tensor dropout_(const at::Tensor& input, double p, c10::string_view mode, std::optional<int64_t> seed) {
  FUSEDTRICKS_OPERATOR(dropout_);
  return op.call(input, p, mode, seed);
}

at::Tensor dropout_backward(const at::Tensor& grad_output, const at::Tensor& rng_state, double p,
                            c10::string_view mode) {
  FUSEDTRICKS_OPERATOR(dropout_backward);
  return op.call(grad_output, rng_state, p, mode);
}

std::tuple<at::Tensor, at::Tensor> feature_dropout(const at::Tensor& input, const OptionalTensor& residual,
                                                   int64_t mask_dims, double p, c10::string_view mode,
                                                   std::optional<int64_t> seed) {
  FUSEDTRICKS_OPERATOR(feature_dropout);
  return op.call(input, residual, mask_dims, p, mode, seed);
}

at::Tensor feature_dropout_(const at::Tensor& input, int64_t mask_dims, double p, c10::string_view mode,
                            std::optional<int64_t> seed) {
  FUSEDTRICKS_OPERATOR(feature_dropout_);
  return op.call(input, mask_dims, p, mode, seed);
}

at::Tensor feature_dropout_backward(const at::Tensor& grad_output, const at::Tensor& rng_state, int64_t mask_dims,
                                    double p, c10::string_view mode) {
  FUSEDTRICKS_OPERATOR(feature_dropout_backward);
  return op.call(grad_output, rng_state, mask_dims, p, mode);
}

std::tuple<at::Tensor, at::Tensor> act_dropout(const at::Tensor& input, const OptionalTensor& bias,
                                               const OptionalTensor& residual, c10::string_view act, Doubles act_args,
                                               double p, std::optional<int64_t> seed) {
  FUSEDTRICKS_OPERATOR(act_dropout);
  return op.call(input, bias, residual, act, act_args, p, seed);
}

std::tuple<at::Tensor, at::Tensor> act_dropout_backward(const at::Tensor& grad_output, const OptionalTensor& input,
                                                        const OptionalTensor& output, const OptionalTensor& bias,
                                                        const OptionalTensor& rng_state, c10::string_view act,
                                                        Doubles act_args, double p, std::array<bool, 2> output_mask) {
  FUSEDTRICKS_OPERATOR(act_dropout_backward);
  return op.call(grad_output, input, output, bias, rng_state, act, act_args, p, output_mask);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fractional_max_pool(const at::Tensor& input, at::IntArrayRef kernel_size,
                                                                   c10::SymIntArrayRef output_size,
                                                                   const OptionalTensor& samples,
                                                                   std::optional<int64_t> seed, c10::string_view act,
                                                                   Doubles act_args) {
  FUSEDTRICKS_OPERATOR(fractional_max_pool);
  return op.call(input, kernel_size, output_size, samples, seed, act, act_args);
}

at::Tensor fractional_max_pool_backward(const at::Tensor& grad_output, const OptionalTensor& output,
                                        const at::Tensor& argmax, const OptionalTensor& samples,
                                        const at::Tensor& rng_state, c10::SymIntArrayRef input_size,
                                        at::IntArrayRef kernel_size, bool channels_last, c10::string_view act,
                                        Doubles act_args) {
  FUSEDTRICKS_OPERATOR(fractional_max_pool_backward);
  return op.call(grad_output, output, argmax, samples, rng_state, input_size, kernel_size, channels_last, act,
                 act_args);
}

at::Tensor fractional_max_pool_indices(const at::Tensor& argmax, const OptionalTensor& samples,
                                       const at::Tensor& rng_state, c10::SymIntArrayRef input_size,
                                       at::IntArrayRef kernel_size) {
  FUSEDTRICKS_OPERATOR(fractional_max_pool_indices);
  return op.call(argmax, samples, rng_state, input_size, kernel_size);
}

std::tuple<at::Tensor, at::Tensor> drop_connect_linear(const at::Tensor& input, const at::Tensor& weight,
                                                       const OptionalTensor& bias, double p,
                                                       std::optional<int64_t> seed) {
  FUSEDTRICKS_OPERATOR(drop_connect_linear);
  return op.call(input, weight, bias, p, seed);
}

std::tuple<at::Tensor, at::Tensor> drop_connect_convolution(const at::Tensor& input, const at::Tensor& weight,
                                                            const OptionalTensor& bias, at::IntArrayRef stride,
                                                            at::IntArrayRef padding, at::IntArrayRef dilation,
                                                            int64_t groups, double p, std::optional<int64_t> seed) {
  FUSEDTRICKS_OPERATOR(drop_connect_convolution);
  return op.call(input, weight, bias, stride, padding, dilation, groups, p, seed);
}

std::tuple<at::Tensor, at::Tensor> dropped_linear(const at::Tensor& input, const at::Tensor& weight,
                                                  const OptionalTensor& bias, double p, std::optional<int64_t> seed) {
  FUSEDTRICKS_OPERATOR(dropped_linear);
  return op.call(input, weight, bias, p, seed);
}

std::tuple<at::Tensor, at::Tensor> dropped_linear_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                                           const at::Tensor& weight, const at::Tensor& rng_state,
                                                           double p) {
  FUSEDTRICKS_OPERATOR(dropped_linear_backward);
  return op.call(grad_output, input, weight, rng_state, p);
}

at::Tensor add_samples(const at::Tensor& input, const at::Tensor& rows, const at::Tensor& index, double scale) {
  FUSEDTRICKS_OPERATOR(add_samples);
  return op.call(input, rows, index, scale);
}

at::Tensor select_samples(const at::Tensor& input, const at::Tensor& index, double scale) {
  FUSEDTRICKS_OPERATOR(select_samples);
  return op.call(input, index, scale);
}

at::Tensor place_samples(const at::Tensor& rows, const at::Tensor& index, c10::SymInt samples, double scale) {
  FUSEDTRICKS_OPERATOR(place_samples);
  return op.call(rows, index, std::move(samples), scale);
}

std::tuple<at::Tensor, at::Tensor> branch_samples(const at::Tensor& input, const at::Tensor& index) {
  FUSEDTRICKS_OPERATOR(branch_samples);
  return op.call(input, index);
}

#undef FUSEDTRICKS_OPERATOR

}  // namespace fusedtricks::ops

#include "ops.h"

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

std::tuple<at::Tensor, at::Tensor> dropout(const at::Tensor& input, double p, bool scale_kept,
                                           std::optional<int64_t> seed) {
  FUSEDTRICKS_OPERATOR(dropout);
  return op.call(input, p, scale_kept, seed);
}

at::Tensor dropout_(const at::Tensor& input, double p, bool scale_kept, std::optional<int64_t> seed) {
  FUSEDTRICKS_OPERATOR(dropout_);
  return op.call(input, p, scale_kept, seed);
}

at::Tensor dropout_backward(const at::Tensor& grad_output, const at::Tensor& rng_state, double p, bool scale_kept) {
  FUSEDTRICKS_OPERATOR(dropout_backward);
  return op.call(grad_output, rng_state, p, scale_kept);
}

#undef FUSEDTRICKS_OPERATOR

}  // namespace fusedtricks::ops

// The operators: every schema, and what each gives for tensors without data (Meta).
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "checks.h"
#include "tensor_layout.h"

TORCH_LIBRARY(fusedtricks, m) {
  // act(batch_norm(input) [+ residual]), and the statistics it used, in float64. Updates the running ones in training.
  m.def(
      "batch_norm_act(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, Tensor? weight, Tensor? bias, Tensor? residual, str act, float[] act_args, "
      "bool training, float? momentum, float eps) -> (Tensor output, Tensor save_mean, Tensor save_rstd)");
  // Its gradients. With a residual, the activation's derivative is read off output, or z is recomputed from residual.
  m.def(
      "batch_norm_act_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, "
      "Tensor? output, Tensor save_mean, Tensor save_rstd, str act, float[] act_args, bool training, float eps, "
      "bool[4] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");
  // dropout(batch_norm_act(…)), and the two int64 that its mask follows from, as those of dropout.
  m.def(
      "batch_norm_act_dropout(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, Tensor? weight, Tensor? bias, Tensor? residual, str act, float[] act_args, "
      "bool training, float? momentum, float eps, float p, int? seed) -> (Tensor output, Tensor save_mean, "
      "Tensor save_rstd, Tensor rng_state)",
      {at::Tag::nondeterministic_seeded});
  // Its gradients. With a residual, the derivative of relu is read off output, and z of others recomputed from
  // residual.
  m.def(
      "batch_norm_act_dropout_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, "
      "Tensor? residual, Tensor? output, Tensor save_mean, Tensor save_rstd, Tensor rng_state, str act, "
      "float[] act_args, bool training, float eps, float p, bool[4] output_mask) -> (Tensor grad_input, "
      "Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");
  // act(input).
  m.def("activation(Tensor input, str act, float[] act_args) -> Tensor");
  // The same, written over input.
  m.def("activation_(Tensor(a!) input, str act, float[] act_args) -> ()");
  // grad_output * act', from what the forward kept: its result where the derivative can be read off it, else its input.
  m.def("activation_backward(Tensor grad_output, Tensor saved, str act, float[] act_args) -> Tensor");
  // grad * d act' / d saved, for the gradient of activation_backward.
  m.def("activation_backward_slope(Tensor grad, Tensor saved, str act, float[] act_args) -> Tensor");
  // input * mask [/ (1 - p)], and the two int64 that the mask follows from: seed and offset.
  m.def("dropout(Tensor input, float p, bool scale_kept, int? seed) -> (Tensor output, Tensor rng_state)",
        {at::Tag::nondeterministic_seeded});
  // The same, written over input.
  m.def("dropout_(Tensor(a!) input, float p, bool scale_kept, int? seed) -> Tensor",
        {at::Tag::nondeterministic_seeded});
  // grad_output * the same mask.
  m.def("dropout_backward(Tensor grad_output, Tensor rng_state, float p, bool scale_kept) -> Tensor");
  // The instruction set that the CPU kernels were compiled for: default, avx2 or avx512.
  m.def("cpu_capability() -> str");
}

namespace fusedtricks {
namespace {

using at::Tensor;
using Strings = c10::string_view;

std::tuple<Tensor, Tensor, Tensor> batch_norm_act_meta(const Tensor& input, const OptionalTensor& running_mean,
                                                       const OptionalTensor& running_var,
                                                       const OptionalTensor& num_batches_tracked,
                                                       const OptionalTensor& weight, const OptionalTensor& bias,
                                                       const OptionalTensor& residual, Strings act,
                                                       at::ArrayRef<double> act_args, bool training,
                                                       std::optional<double> momentum, double eps) {
  check_activation(act, act_args);
  check_batch_norm(
      {input, running_mean, running_var, num_batches_tracked, weight, bias, residual, training, momentum, eps});
  const auto statistics = input.options().dtype(at::kDouble);
  return {empty_in_kernel_layout(input), at::empty_symint({input.sym_size(1)}, statistics),
          at::empty_symint({input.sym_size(1)}, statistics)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward_meta(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& output, const Tensor& save_mean, const Tensor& save_rstd,
    Strings act, at::ArrayRef<double> act_args, bool, double, std::array<bool, 4> output_mask) {
  check_activation(act, act_args);
  check_batch_norm_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd);
  const auto per_channel = [&](const OptionalTensor& parameter, bool wanted) {
    return wanted ? at::empty_symint({input.sym_size(1)}, parameter ? parameter->options() : input.options())
                  : Tensor();
  };
  return {output_mask[0] ? empty_in_kernel_layout(input) : Tensor(), per_channel(weight, output_mask[1]),
          per_channel(bias, output_mask[2]), output_mask[3] ? empty_in_kernel_layout(input) : Tensor()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_dropout_meta(
    const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, Strings act, at::ArrayRef<double> act_args, bool training,
    std::optional<double> momentum, double eps, double p, std::optional<int64_t>) {
  check_probability(p);
  const auto [output, mean, rstd] = batch_norm_act_meta(input, running_mean, running_var, num_batches_tracked, weight,
                                                        bias, residual, act, act_args, training, momentum, eps);
  return {output, mean, rstd, at::empty({2}, input.options().dtype(at::kLong))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_dropout_backward_meta(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& output, const Tensor& save_mean, const Tensor& save_rstd,
    const Tensor& rng_state, Strings act, at::ArrayRef<double> act_args, bool training, double eps, double p,
    std::array<bool, 4> output_mask) {
  check_probability(p);
  check_rng_state(rng_state, grad_output);
  check_kept_behind_dropout(check_activation(act, act_args), output);
  return batch_norm_act_backward_meta(grad_output, input, weight, bias, residual, output, save_mean, save_rstd, act,
                                      act_args, training, eps, output_mask);
}

Tensor activation_meta(const Tensor& input, Strings act, at::ArrayRef<double> act_args) {
  check_activation(act, act_args);
  check_floating(input, "activation", "input");
  return at::empty_like(input);
}

void activation_inplace_meta(const Tensor& input, Strings act, at::ArrayRef<double> act_args) {
  check_activation(act, act_args);
  check_floating(input, "activation", "input");
}

Tensor activation_backward_meta(const Tensor& grad_output, const Tensor& saved, Strings act,
                                at::ArrayRef<double> act_args) {
  check_activation(act, act_args);
  check_like(grad_output, saved, "grad_output", "saved");
  return at::empty_like(saved);
}

std::tuple<Tensor, Tensor> dropout_meta(const Tensor& input, double p, bool, std::optional<int64_t>) {
  check_floating(input, "dropout", "input");
  check_probability(p);
  return {empty_in_kernel_layout(input), at::empty({2}, input.options().dtype(at::kLong))};
}

Tensor dropout_inplace_meta(const Tensor& input, double p, bool, std::optional<int64_t>) {
  check_floating(input, "dropout", "input");
  check_probability(p);
  return at::empty({2}, input.options().dtype(at::kLong));
}

Tensor dropout_backward_meta(const Tensor& grad_output, const Tensor& rng_state, double p, bool) {
  check_probability(p);
  check_rng_state(rng_state, grad_output);
  return empty_in_kernel_layout(grad_output);
}

// Every backend without a kernel of its own.
void unsupported_device(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  for (const auto& value : *stack) {
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    const Tensor& t = value.toTensor();
    TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().name(), ": ", op.schema().arguments()[0].name(), " on device ",
                                t.device(), " with layout ", t.layout(),
                                " is not supported; it takes a dense tensor on a device whose backend "
                                "`python -m fusedtricks info` lists as built");
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, Meta, m) {
  m.impl("batch_norm_act", batch_norm_act_meta);
  m.impl("batch_norm_act_backward", batch_norm_act_backward_meta);
  m.impl("batch_norm_act_dropout", batch_norm_act_dropout_meta);
  m.impl("batch_norm_act_dropout_backward", batch_norm_act_dropout_backward_meta);
  m.impl("activation", activation_meta);
  m.impl("activation_", activation_inplace_meta);
  m.impl("activation_backward", activation_backward_meta);
  m.impl("activation_backward_slope", activation_backward_meta);
  m.impl("dropout", dropout_meta);
  m.impl("dropout_", dropout_inplace_meta);
  m.impl("dropout_backward", dropout_backward_meta);
}

TORCH_LIBRARY_IMPL(fusedtricks, CompositeExplicitAutograd, m) {
  for (const char* op : {"batch_norm_act", "batch_norm_act_backward", "batch_norm_act_dropout",
                         "batch_norm_act_dropout_backward", "activation", "activation_", "activation_backward",
                         "activation_backward_slope", "dropout", "dropout_", "dropout_backward"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&unsupported_device>());
  }
}

}  // namespace fusedtricks

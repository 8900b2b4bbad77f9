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
  // max_pool2d(act(batch_norm(input))), the place of each maximum in its window, and the statistics as above.
  m.def(
      "batch_norm_act_max_pool2d(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, Tensor? weight, Tensor? bias, str act, float[] act_args, int[2] kernel_size, "
      "int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, bool training, float? momentum, float eps) -> "
      "(Tensor output, Tensor argmax, Tensor save_mean, Tensor save_rstd)");
  // Its gradients.
  m.def(
      "batch_norm_act_max_pool2d_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, "
      "Tensor argmax, Tensor save_mean, Tensor save_rstd, str act, float[] act_args, int[2] kernel_size, "
      "int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, bool training, float eps, bool[3] output_mask) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
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

// A parameter's gradient.
Tensor empty_per_channel(const Tensor& input, const OptionalTensor& parameter, bool wanted) {
  return wanted ? at::empty_symint({input.sym_size(1)}, parameter ? parameter->options() : input.options()) : Tensor();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward_meta(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& output, const Tensor& save_mean, const Tensor& save_rstd,
    Strings act, at::ArrayRef<double> act_args, bool, double, std::array<bool, 4> output_mask) {
  check_activation(act, act_args);
  check_batch_norm_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd);
  return {output_mask[0] ? empty_in_kernel_layout(input) : Tensor(), empty_per_channel(input, weight, output_mask[1]),
          empty_per_channel(input, bias, output_mask[2]), output_mask[3] ? empty_in_kernel_layout(input) : Tensor()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_max_pool2d_meta(
    const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, const OptionalTensor& weight, const OptionalTensor& bias, Strings act,
    at::ArrayRef<double> act_args, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool ceil_mode, bool training, std::optional<double> momentum, double eps) {
  check_activation(act, act_args);
  const MaxPoolArguments windows{kernel_size, stride, padding, dilation, ceil_mode};
  const OptionalTensor none;
  check_max_pool(input, windows);
  check_batch_norm(
      {input, running_mean, running_var, num_batches_tracked, weight, bias, none, training, momentum, eps});
  const std::vector<c10::SymInt> sizes{input.sym_size(0), input.sym_size(1), pooled_size(input.sym_size(2), windows, 0),
                                       pooled_size(input.sym_size(3), windows, 1)};
  const auto format = image_format(input);
  const auto statistics = input.options().dtype(at::kDouble);
  return {at::empty_symint(sizes, input.options().memory_format(format)),
          at::empty_symint(sizes, input.options().dtype(at::kByte).memory_format(format)),
          at::empty_symint({input.sym_size(1)}, statistics), at::empty_symint({input.sym_size(1)}, statistics)};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act_max_pool2d_backward_meta(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const Tensor& argmax, const Tensor& save_mean, const Tensor& save_rstd, Strings act, at::ArrayRef<double> act_args,
    at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
    bool ceil_mode, bool, double, std::array<bool, 3> output_mask) {
  check_activation(act, act_args);
  check_batch_norm_pool_backward(grad_output, input, weight, bias, argmax, save_mean, save_rstd,
                                 {kernel_size, stride, padding, dilation, ceil_mode});
  return {output_mask[0] ? empty_in_kernel_layout(input) : Tensor(), empty_per_channel(input, weight, output_mask[1]),
          empty_per_channel(input, bias, output_mask[2])};
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
  m.impl("batch_norm_act_max_pool2d", batch_norm_act_max_pool2d_meta);
  m.impl("batch_norm_act_max_pool2d_backward", batch_norm_act_max_pool2d_backward_meta);
  m.impl("activation", activation_meta);
  m.impl("activation_", activation_inplace_meta);
  m.impl("activation_backward", activation_backward_meta);
  m.impl("activation_backward_slope", activation_backward_meta);
  m.impl("dropout", dropout_meta);
  m.impl("dropout_", dropout_inplace_meta);
  m.impl("dropout_backward", dropout_backward_meta);
}

TORCH_LIBRARY_IMPL(fusedtricks, CompositeExplicitAutograd, m) {
  for (const char* op : {"batch_norm_act", "batch_norm_act_backward", "batch_norm_act_max_pool2d",
                         "batch_norm_act_max_pool2d_backward", "activation", "activation_", "activation_backward",
                         "activation_backward_slope", "dropout", "dropout_", "dropout_backward"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&unsupported_device>());
  }
}

}  // namespace fusedtricks

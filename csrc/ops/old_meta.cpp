// What each operator gives for tensors without data, after the checks of its arguments.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "checks/checks.h"
#include "checks/fractional_max_pool.h"
#include "ops/tensor_layout.h"

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

std::tuple<Tensor, Tensor> dropout_meta(const Tensor& input, double p, Strings mode, std::optional<int64_t>) {
  check_floating(input, "dropout", "input");
  check_dropout(p, mode);
  return {empty_in_kernel_layout(input), at::empty({2}, input.options().dtype(at::kLong))};
}

Tensor dropout_inplace_meta(const Tensor& input, double p, Strings mode, std::optional<int64_t>) {
  check_floating(input, "dropout", "input");
  check_dropout(p, mode);
  return at::empty({2}, input.options().dtype(at::kLong));
}

Tensor dropout_backward_meta(const Tensor& grad_output, const Tensor& rng_state, double p, Strings mode) {
  check_dropout(p, mode);
  check_rng_state(rng_state, grad_output);
  return empty_in_kernel_layout(grad_output);
}

Tensor rng_state_for(const Tensor& input) { return at::empty({2}, input.options().dtype(at::kLong)); }

std::tuple<Tensor, Tensor> act_dropout_meta(const Tensor& input, const OptionalTensor& bias,
                                            const OptionalTensor& residual, Strings act, at::ArrayRef<double> act_args,
                                            double p, std::optional<int64_t>) {
  check_activation(act, act_args);
  const DropRate rate = check_act_dropout(input, bias, residual, p);
  return {empty_in_kernel_layout(input), empty_rng_state(input, rate)};
}

std::tuple<Tensor, Tensor> act_dropout_backward_meta(const Tensor& grad_output, const OptionalTensor& input,
                                                     const OptionalTensor& output, const OptionalTensor& bias,
                                                     const OptionalTensor& rng_state, Strings act,
                                                     at::ArrayRef<double> act_args, double p,
                                                     std::array<bool, 2> output_mask) {
  const Activation activation = check_activation(act, act_args);
  check_act_dropout_backward(grad_output, input, output, bias, rng_state, activation, p, output_mask);
  return {output_mask[0] ? empty_in_kernel_layout(grad_output) : Tensor(),
          output_mask[1] ? at::empty_like(*bias, at::MemoryFormat::Contiguous) : Tensor()};
}

std::tuple<Tensor, Tensor> feature_dropout_meta(const Tensor& input, const OptionalTensor& residual, int64_t mask_dims,
                                                double p, Strings mode, std::optional<int64_t>) {
  check_feature_dropout(input, residual, mask_dims, p, mode);
  return {empty_in_kernel_layout(input), rng_state_for(input)};
}

Tensor feature_dropout_inplace_meta(const Tensor& input, int64_t mask_dims, double p, Strings mode,
                                    std::optional<int64_t>) {
  check_feature_dropout(input, std::nullopt, mask_dims, p, mode);
  return rng_state_for(input);
}

Tensor feature_dropout_backward_meta(const Tensor& grad_output, const Tensor& rng_state, int64_t mask_dims, double p,
                                     Strings mode) {
  check_feature_dropout(grad_output, std::nullopt, mask_dims, p, mode);
  check_rng_state(rng_state, grad_output);
  return empty_in_kernel_layout(grad_output);
}

std::tuple<Tensor, Tensor, Tensor> fractional_max_pool_meta(const Tensor& input, at::IntArrayRef kernel_size,
                                                            c10::SymIntArrayRef output_size,
                                                            const OptionalTensor& samples, std::optional<int64_t>,
                                                            Strings act, at::ArrayRef<double> act_args) {
  check_monotone(act, act_args);
  check_fractional_max_pool(input, kernel_size, output_size, samples);
  const auto shape = with_batch_and_channels(input, output_size);
  const auto format = pool_format(input);
  return {at::empty_symint(shape, input.options(), format),
          at::empty_symint(shape, input.options().dtype(place_dtype(kernel_size)), format),
          at::empty({2}, input.options().dtype(at::kLong))};
}

Tensor fractional_max_pool_backward_meta(const Tensor& grad_output, const OptionalTensor& output, const Tensor& argmax,
                                         const OptionalTensor& samples, const Tensor& rng_state,
                                         c10::SymIntArrayRef input_size, at::IntArrayRef kernel_size,
                                         bool channels_last, Strings act, at::ArrayRef<double> act_args) {
  const Activation activation = check_monotone(act, act_args);
  check_pool_kept(argmax, samples, rng_state, input_size, kernel_size);
  check_pool_backward(grad_output, output, argmax, activation);
  return at::empty_symint(with_batch_and_channels(argmax, input_size), grad_output.options(),
                          pool_format(channels_last, argmax.dim()));
}

Tensor fractional_max_pool_indices_meta(const Tensor& argmax, const OptionalTensor& samples, const Tensor& rng_state,
                                        c10::SymIntArrayRef input_size, at::IntArrayRef kernel_size) {
  check_pool_kept(argmax, samples, rng_state, input_size, kernel_size);
  return at::empty_symint(argmax.sym_sizes(), argmax.options().dtype(at::kLong), pool_format(argmax));
}

std::tuple<Tensor, Tensor> dropped_linear_meta(const Tensor& input, const Tensor& weight, const OptionalTensor&,
                                               double p, std::optional<int64_t>) {
  check_dropped_linear(input, weight, p);
  return {at::empty_symint({input.sym_size(0), weight.sym_size(0)}, input.options()),
          at::empty({2}, input.options().dtype(at::kLong))};
}

std::tuple<Tensor, Tensor> dropped_linear_backward_meta(const Tensor& grad_output, const Tensor& input,
                                                        const Tensor& weight, const Tensor& rng_state, double p) {
  check_dropped_linear(input, weight, p);
  check_rng_state(rng_state, grad_output);
  return {at::empty_symint(input.sym_sizes(), input.options()), at::empty_symint(weight.sym_sizes(), weight.options())};
}

Tensor add_samples_meta(const Tensor& input, const Tensor& rows, const Tensor& index, double) {
  check_samples(input, "add_samples", "input");
  check_sample_index(index, input);
  check_sample_rows(rows, index, input);
  return empty_in_kernel_layout(input);
}

Tensor select_samples_meta(const Tensor& input, const Tensor& index, double) {
  check_samples(input, "select_samples", "input");
  check_sample_index(index, input);
  return empty_samples_like(input, index.sym_size(0));
}

Tensor place_samples_meta(const Tensor& rows, const Tensor& index, c10::SymInt samples, double) {
  check_samples(rows, "place_samples", "rows");
  check_sample_index(index, rows);
  check_sample_rows(rows, index, rows);
  return empty_samples_like(rows, std::move(samples));
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, Meta, m) {
  m.impl("batch_norm_act", batch_norm_act_meta);
  m.impl("batch_norm_act_backward", batch_norm_act_backward_meta);
  m.impl("batch_norm_act_max_pool2d", batch_norm_act_max_pool2d_meta);
  m.impl("batch_norm_act_max_pool2d_backward", batch_norm_act_max_pool2d_backward_meta);
  m.impl("batch_norm_act_dropout", batch_norm_act_dropout_meta);
  m.impl("batch_norm_act_dropout_backward", batch_norm_act_dropout_backward_meta);
  m.impl("activation", activation_meta);
  m.impl("activation_", activation_inplace_meta);
  m.impl("activation_backward", activation_backward_meta);
  m.impl("activation_backward_slope", activation_backward_meta);
  m.impl("dropout", dropout_meta);
  m.impl("dropout_", dropout_inplace_meta);
  m.impl("dropout_backward", dropout_backward_meta);
  m.impl("act_dropout", act_dropout_meta);
  m.impl("act_dropout_backward", act_dropout_backward_meta);
  m.impl("feature_dropout", feature_dropout_meta);
  m.impl("feature_dropout_", feature_dropout_inplace_meta);
  m.impl("feature_dropout_backward", feature_dropout_backward_meta);
  m.impl("fractional_max_pool", fractional_max_pool_meta);
  m.impl("fractional_max_pool_backward", fractional_max_pool_backward_meta);
  m.impl("fractional_max_pool_indices", fractional_max_pool_indices_meta);
  m.impl("dropped_linear", dropped_linear_meta);
  m.impl("dropped_linear_backward", dropped_linear_backward_meta);
  m.impl("add_samples", add_samples_meta);
  m.impl("select_samples", select_samples_meta);
  m.impl("place_samples", place_samples_meta);
}

}  // namespace fusedtricks

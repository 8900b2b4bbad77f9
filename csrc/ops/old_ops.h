// The operators as C++ functions: each call goes through PyTorch's dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "checks/checks.h"

namespace fusedtricks::ops {

using Doubles = at::ArrayRef<double>;

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act(
    const at::Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, c10::string_view act, Doubles act_args, bool training,
    std::optional<double> momentum, double eps);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& output, const at::Tensor& save_mean,
    const at::Tensor& save_rstd, c10::string_view act, Doubles act_args, bool training, double eps,
    std::array<bool, 4> output_mask);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_max_pool2d(
    const at::Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, const OptionalTensor& weight, const OptionalTensor& bias,
    c10::string_view act, Doubles act_args, at::IntArrayRef kernel_size, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, bool training, std::optional<double> momentum,
    double eps);

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_max_pool2d_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const at::Tensor& argmax, const at::Tensor& save_mean, const at::Tensor& save_rstd, c10::string_view act,
    Doubles act_args, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool ceil_mode, bool training, double eps, std::array<bool, 3> output_mask);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_dropout(
    const at::Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, c10::string_view act, Doubles act_args, bool training,
    std::optional<double> momentum, double eps, double p, std::optional<int64_t> seed);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_dropout_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& output, const at::Tensor& save_mean,
    const at::Tensor& save_rstd, const at::Tensor& rng_state, c10::string_view act, Doubles act_args, bool training,
    double eps, double p, std::array<bool, 4> output_mask);

at::Tensor activation(const at::Tensor& input, c10::string_view act, Doubles act_args);
void activation_(const at::Tensor& input, c10::string_view act, Doubles act_args);
at::Tensor activation_backward(const at::Tensor& grad_output, const at::Tensor& saved, c10::string_view act,
                               Doubles act_args);
at::Tensor activation_backward_slope(const at::Tensor& grad, const at::Tensor& saved, c10::string_view act,
                                     Doubles act_args);

std::tuple<at::Tensor, at::Tensor> dropout(const at::Tensor& input, double p, c10::string_view mode,
                                           std::optional<int64_t> seed);
at::Tensor dropout_(const at::Tensor& input, double p, c10::string_view mode, std::optional<int64_t> seed);
at::Tensor dropout_backward(const at::Tensor& grad_output, const at::Tensor& rng_state, double p,
                            c10::string_view mode);

std::tuple<at::Tensor, at::Tensor> feature_dropout(const at::Tensor& input, const OptionalTensor& residual,
                                                   int64_t mask_dims, double p, c10::string_view mode,
                                                   std::optional<int64_t> seed);
at::Tensor feature_dropout_(const at::Tensor& input, int64_t mask_dims, double p, c10::string_view mode,
                            std::optional<int64_t> seed);
at::Tensor feature_dropout_backward(const at::Tensor& grad_output, const at::Tensor& rng_state, int64_t mask_dims,
                                    double p, c10::string_view mode);

std::tuple<at::Tensor, at::Tensor> act_dropout(const at::Tensor& input, const OptionalTensor& bias,
                                               const OptionalTensor& residual, c10::string_view act, Doubles act_args,
                                               double p, std::optional<int64_t> seed);
std::tuple<at::Tensor, at::Tensor> act_dropout_backward(const at::Tensor& grad_output, const OptionalTensor& input,
                                                        const OptionalTensor& output, const OptionalTensor& bias,
                                                        const OptionalTensor& rng_state, c10::string_view act,
                                                        Doubles act_args, double p, std::array<bool, 2> output_mask);

std::tuple<at::Tensor, at::Tensor, at::Tensor> fractional_max_pool(const at::Tensor& input, at::IntArrayRef kernel_size,
                                                                   c10::SymIntArrayRef output_size,
                                                                   const OptionalTensor& samples,
                                                                   std::optional<int64_t> seed, c10::string_view act,
                                                                   Doubles act_args);
at::Tensor fractional_max_pool_backward(const at::Tensor& grad_output, const OptionalTensor& output,
                                        const at::Tensor& argmax, const OptionalTensor& samples,
                                        const at::Tensor& rng_state, c10::SymIntArrayRef input_size,
                                        at::IntArrayRef kernel_size, bool channels_last, c10::string_view act,
                                        Doubles act_args);
at::Tensor fractional_max_pool_indices(const at::Tensor& argmax, const OptionalTensor& samples,
                                       const at::Tensor& rng_state, c10::SymIntArrayRef input_size,
                                       at::IntArrayRef kernel_size);

std::tuple<at::Tensor, at::Tensor> drop_connect_linear(const at::Tensor& input, const at::Tensor& weight,
                                                       const OptionalTensor& bias, double p,
                                                       std::optional<int64_t> seed);
std::tuple<at::Tensor, at::Tensor> drop_connect_convolution(const at::Tensor& input, const at::Tensor& weight,
                                                            const OptionalTensor& bias, at::IntArrayRef stride,
                                                            at::IntArrayRef padding, at::IntArrayRef dilation,
                                                            int64_t groups, double p, std::optional<int64_t> seed);

std::tuple<at::Tensor, at::Tensor> dropped_linear(const at::Tensor& input, const at::Tensor& weight,
                                                  const OptionalTensor& bias, double p, std::optional<int64_t> seed);
std::tuple<at::Tensor, at::Tensor> dropped_linear_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                                           const at::Tensor& weight, const at::Tensor& rng_state,
                                                           double p);

at::Tensor add_samples(const at::Tensor& input, const at::Tensor& rows, const at::Tensor& index, double scale);
at::Tensor select_samples(const at::Tensor& input, const at::Tensor& index, double scale);
at::Tensor place_samples(const at::Tensor& rows, const at::Tensor& index, c10::SymInt samples, double scale);
std::tuple<at::Tensor, at::Tensor> branch_samples(const at::Tensor& input, const at::Tensor& index);

}  // namespace fusedtricks::ops

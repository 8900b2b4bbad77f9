// The operators as C++ functions: each call goes through PyTorch's dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "checks.h"

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

std::tuple<at::Tensor, at::Tensor> dropout(const at::Tensor& input, double p, bool scale_kept,
                                           std::optional<int64_t> seed);
at::Tensor dropout_(const at::Tensor& input, double p, bool scale_kept, std::optional<int64_t> seed);
at::Tensor dropout_backward(const at::Tensor& grad_output, const at::Tensor& rng_state, double p, bool scale_kept);

}  // namespace fusedtricks::ops

// batch_norm_act_max_pool2d for the tensors of one backend: checks, outputs and memory layout.
#include "calls/batch_norm_pool.h"

#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "ops/tensor_layout.h"
#include "ops/old_backend_batch_norm.h"

namespace fusedtricks {
namespace {

using at::Tensor;
using Pair = at::IntArrayRef;

PoolAxis pool_axis(const Tensor& input, const MaxPoolArguments& a, int axis) {
  const int64_t size = input.size(2 + axis);
  return {size, pooled_size(size, a, axis), a.kernel_size[axis], a.stride[axis], a.padding[axis], a.dilation[axis]};
}

MaxPool max_pool(const Tensor& input, const MaxPoolArguments& a) {
  return {pool_axis(input, a, 0), pool_axis(input, a, 1)};
}

Layout image_layout(const Tensor& input, at::MemoryFormat format) {
  return {input.size(0), input.size(1), input.size(2) * input.size(3), format == at::MemoryFormat::ChannelsLast};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_max_pool2d(
    const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, const OptionalTensor& weight, const OptionalTensor& bias,
    c10::string_view act, at::ArrayRef<double> act_args, Pair kernel_size, Pair stride, Pair padding, Pair dilation,
    bool ceil_mode, bool training, std::optional<double> momentum, double eps) {
  const Activation activation = check_activation(act, act_args);
  const MaxPoolArguments windows{kernel_size, stride, padding, dilation, ceil_mode};
  const OptionalTensor none;
  check_max_pool(input, windows);
  check_batch_norm(
      {input, running_mean, running_var, num_batches_tracked, weight, bias, none, training, momentum, eps});
  const c10::DeviceGuard guard(input.device());
  const at::MemoryFormat format = image_format(input);
  const MaxPool pool = max_pool(input, windows);
  const auto output = [&](at::ScalarType type) {
    return at::empty({input.size(0), input.size(1), pool.rows.outputs, pool.columns.outputs},
                     input.options().dtype(type).memory_format(format));
  };
  const Tensor y = output(input.scalar_type()), argmax = output(at::kByte);
  const auto statistics = input.options().dtype(at::kDouble);
  if (input.numel() == 0) {
    // An empty batch counts, as it does in stock.
    if (training && running_mean && num_batches_tracked) num_batches_tracked->add_(1);
    return {y, argmax, at::zeros({input.size(1)}, statistics), at::zeros({input.size(1)}, statistics)};
  }
  const Tensor mean = at::empty({input.size(1)}, statistics), rstd = at::empty({input.size(1)}, statistics);
  const Tensor x = input.contiguous(format);
  BatchNormPoolForward a{
      {image_layout(input, format), x.scalar_type(), activation, x.const_data_ptr(), nullptr, nullptr,
       channel_values(weight), channel_values(bias), channel_values(running_mean), channel_values(running_var),
       num_batches_tracked ? num_batches_tracked->data_ptr<int64_t>() : nullptr, mean.mutable_data_ptr<double>(),
       rstd.mutable_data_ptr<double>(), training, momentum.value_or(-1), eps, nullptr},
      pool,
      y.data_ptr(),
      argmax.mutable_data_ptr<uint8_t>()};
  const Tensor memory = workspace(backend::batch_norm_pool_forward_workspace(a), input);
  if (memory.defined()) a.norm.workspace = memory.data_ptr();
  backend::batch_norm_pool_forward(a);
  return {y, argmax, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act_max_pool2d_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const Tensor& argmax, const Tensor& save_mean, const Tensor& save_rstd, c10::string_view act,
    at::ArrayRef<double> act_args, Pair kernel_size, Pair stride, Pair padding, Pair dilation, bool ceil_mode,
    bool training, double /*eps*/, std::array<bool, 3> output_mask) {
  const Activation activation = check_activation(act, act_args);
  const MaxPoolArguments windows{kernel_size, stride, padding, dilation, ceil_mode};
  check_batch_norm_pool_backward(grad_output, input, weight, bias, argmax, save_mean, save_rstd, windows);
  const c10::DeviceGuard guard(input.device());
  const bool empty = input.numel() == 0;
  const auto parameter_gradient = [&](const OptionalTensor& parameter, bool wanted) {
    if (!wanted) return Tensor();
    const auto options = parameter ? parameter->options() : input.options();
    return empty ? at::zeros({input.size(1)}, options) : at::empty({input.size(1)}, options);
  };
  const at::MemoryFormat format = image_format(input);
  const Tensor dx = output_mask[0] ? empty_in_kernel_layout(input) : Tensor();
  const Tensor dw = parameter_gradient(weight, output_mask[1]), db = parameter_gradient(bias, output_mask[2]);
  if (empty) return {dx, dw, db};

  const Tensor x = input.contiguous(format), dy = grad_output.contiguous(format), place = argmax.contiguous(format);
  const Tensor mean = save_mean.contiguous(), rstd = save_rstd.contiguous();
  BatchNormPoolBackward a{{image_layout(input, format), x.scalar_type(), activation, nullptr, x.const_data_ptr(),
                           nullptr, nullptr, dx.defined() ? dx.data_ptr() : nullptr, nullptr, channel_values(weight),
                           channel_values(bias), channel_values(dw), channel_values(db), mean.const_data_ptr<double>(),
                           rstd.const_data_ptr<double>(), training, nullptr},
                          max_pool(input, windows),
                          dy.const_data_ptr(),
                          place.const_data_ptr<uint8_t>()};
  const Tensor memory = workspace(backend::batch_norm_pool_backward_workspace(a), input);
  if (memory.defined()) a.norm.workspace = memory.data_ptr();
  backend::batch_norm_pool_backward(a);
  return {dx, dw, db};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, FUSEDTRICKS_BACKEND, m) {
  m.impl("batch_norm_act_max_pool2d", batch_norm_act_max_pool2d);
  m.impl("batch_norm_act_max_pool2d_backward", batch_norm_act_max_pool2d_backward);
}

}  // namespace fusedtricks

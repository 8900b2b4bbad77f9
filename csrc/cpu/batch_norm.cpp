// batch_norm_act for CPU tensors: checks, outputs and memory layout; the arithmetic is in batch_norm_*.cpp.
#include "batch_norm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../checks.h"

namespace fusedtricks::cpu {

double ChannelValues::get(int64_t channel) const {
  const int64_t i = channel * stride;
  switch (dtype) {
    case at::kFloat:
      return static_cast<const float*>(data)[i];
    case at::kDouble:
      return static_cast<const double*>(data)[i];
    case at::kBFloat16:
      return load(static_cast<const c10::BFloat16*>(data)[i]);
    default:
      return load(static_cast<const c10::Half*>(data)[i]);
  }
}

void ChannelValues::set(int64_t channel, double value) const {
  const int64_t i = channel * stride;
  switch (dtype) {
    case at::kFloat:
      static_cast<float*>(data)[i] = float(value);
      break;
    case at::kDouble:
      static_cast<double*>(data)[i] = value;
      break;
    case at::kBFloat16:
      static_cast<c10::BFloat16*>(data)[i] = store<c10::BFloat16>(canonical<float>(value));
      break;
    default:
      static_cast<c10::Half*>(data)[i] = store<c10::Half>(float(value));
      break;
  }
}

namespace {

using at::Tensor;

ChannelValues channel_values(const Tensor& t) {
  if (!t.defined()) return {};
  return {t.data_ptr(), t.scalar_type(), t.stride(0)};
}

ChannelValues channel_values(const OptionalTensor& t) { return t ? channel_values(*t) : ChannelValues{}; }

const void* data_or_null(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// t laid out like model, undefined where there is none.
Tensor laid_out_like(const OptionalTensor& t, const Tensor& model) {
  return t ? fusedtricks::laid_out_like(*t, model) : Tensor();
}

// Counts the batch, and gives the weight of its statistics in the running ones.
double count_batch(const OptionalTensor& num_batches_tracked, std::optional<double> momentum) {
  if (!num_batches_tracked) return momentum.value_or(0);
  int64_t& count = *num_batches_tracked->data_ptr<int64_t>();
  ++count;
  return momentum ? *momentum : 1 / double(count);
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
  const Tensor y = empty_in_kernel_layout(input);
  const Tensor mean = at::zeros({input.size(1)}, input.options().dtype(at::kDouble)), rstd = mean.clone();
  const double factor = training && running_mean ? count_batch(num_batches_tracked, momentum) : 0;
  if (input.numel() == 0) return {y, mean, rstd};

  const Tensor x = fusedtricks::laid_out_like(input, y), r = laid_out_like(residual, y);
  batch_norm_forward({layout_of(y), x.scalar_type(), activation, x.const_data_ptr(), data_or_null(r), y.data_ptr(),
                      channel_values(weight), channel_values(bias), channel_values(running_mean),
                      channel_values(running_var), mean.mutable_data_ptr<double>(), rstd.mutable_data_ptr<double>(),
                      training, factor, eps});
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& output, const Tensor& save_mean, const Tensor& save_rstd,
    c10::string_view act, at::ArrayRef<double> act_args, bool training, double /*eps*/,
    std::array<bool, 4> output_mask) {
  const Activation activation = check_activation(act, act_args);
  check_batch_norm_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd);
  const auto parameter_gradient = [&](const OptionalTensor& parameter, bool wanted) {
    return wanted ? at::zeros({input.size(1)}, parameter ? parameter->options() : input.options()) : Tensor();
  };
  const bool after_residual = residual || output;
  const Tensor like = empty_in_kernel_layout(input);
  const Tensor dx = output_mask[0] ? like : Tensor();
  const Tensor dw = parameter_gradient(weight, output_mask[1]), db = parameter_gradient(bias, output_mask[2]);
  const Tensor dz = after_residual ? at::empty_like(like) : Tensor();
  const Tensor dr = output_mask[3] ? (after_residual ? dz : grad_output.clone()) : Tensor();
  if (input.numel() == 0) return {dx, dw, db, dr};

  const Tensor dy = fusedtricks::laid_out_like(grad_output, like), x = fusedtricks::laid_out_like(input, like);
  const Tensor y = laid_out_like(output, like), r = laid_out_like(residual, like);
  const Tensor mean = save_mean.contiguous(), rstd = save_rstd.contiguous();
  batch_norm_backward({layout_of(like), x.scalar_type(), activation, dy.const_data_ptr(), x.const_data_ptr(),
                       data_or_null(y), data_or_null(r), dx.defined() ? dx.data_ptr() : nullptr,
                       dz.defined() ? dz.data_ptr() : nullptr, channel_values(weight), channel_values(bias),
                       channel_values(dw), channel_values(db), mean.const_data_ptr<double>(),
                       rstd.const_data_ptr<double>(), training});
  return {dx, dw, db, dr};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, CPU, m) {
  m.impl("batch_norm_act", batch_norm_act);
  m.impl("batch_norm_act_backward", batch_norm_act_backward);
}

#define FT_STRING(token) #token
#define FT_NAME(token) FT_STRING(token)

TORCH_LIBRARY_IMPL(fusedtricks, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", [] { return std::string(FT_NAME(FUSEDTRICKS_ISA)); });
}

}  // namespace fusedtricks::cpu

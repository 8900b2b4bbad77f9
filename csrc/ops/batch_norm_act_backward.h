// The gradients of act(batch_norm(input) [+ residual]), and of its dropout: operators of their own, which can be
// differentiated again. Included by batch_norm_act.cpp alone.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <c10/core/DeviceGuard.h>

#include "ops/batch_norm.h"
#include "ops/compositions.h"
#include "ops/random.h"

namespace fusedtricks {

struct BatchNormAttributes {
  Activation act;
  bool training;
  double eps;
  double p;  // of dropout

  auto values() const { return std::tie(act, training, eps, p); }
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Runs the kernels of a backward. mask: that of dropout, or none.
template <class Op>
Gradients input_gradients(const Op& a, const double* mean, const double* rstd, const MaskSource& mask) {
  const Activation act = check_activation(a.act, a.act_args);
  const c10::DeviceGuard guard(a.input.device());
  // Behind the identity the residual's gradient is dy, unless that is dropped.
  const bool drops_residual = mask && a.output_mask[3] && act.is_identity();
  const bool after_residual = a.residual || a.output || drops_residual;
  const Tensor like = empty_in_kernel_layout(a.input);
  const Tensor dx = a.output_mask[0] ? like : Tensor();
  const Tensor dw = empty_parameter_gradient(a.input, a.weight, a.output_mask[1]);
  const Tensor db = empty_parameter_gradient(a.input, a.bias, a.output_mask[2]);
  const Tensor dz = after_residual ? empty_in_kernel_layout(like) : Tensor();
  const Tensor dr = !a.output_mask[3] ? Tensor() : after_residual ? dz : a.grad_output.clone();
  if (!a.input.numel()) return {dx, dw, db, dr};

  const Tensor dy = laid_out_like(a.grad_output, like), x = laid_out_like(a.input, like);
  const Tensor y = drops_residual ? dy : optional_laid_out_like(a.output, like);
  const Tensor r = optional_laid_out_like(a.residual, like);
  BatchNormBackward call{.layout = layout_of(like),
                         .dtype = x.scalar_type(),
                         .act = act,
                         .dy = dy.const_data_ptr(),
                         .x = x.const_data_ptr(),
                         .output = data_or_null(y),
                         .residual = data_or_null(r),
                         .dx = dx.defined() ? dx.data_ptr() : nullptr,
                         .dz = dz.defined() ? dz.data_ptr() : nullptr,
                         .weight = channel_values(a.weight),
                         .bias = channel_values(a.bias),
                         .dweight = channel_values(dw),
                         .dbias = channel_values(db),
                         .mean = mean,
                         .rstd = rstd,
                         .training = a.training,
                         .workspace = nullptr,
                         .mask = mask};
  const auto device = like.device().type();
  const Tensor memory = workspace(kernels::batch_norm_backward_workspace(device)(call), like);
  if (memory.defined()) call.workspace = memory.data_ptr();
  kernels::batch_norm_backward(device)(call);
  return {dx, dw, db, dr};
}

template <class Op>
Gradients empty_gradients(const Op& a) {
  return {a.output_mask[0] ? empty_in_kernel_layout(a.input) : Tensor(),
          empty_parameter_gradient(a.input, a.weight, a.output_mask[1]),
          empty_parameter_gradient(a.input, a.bias, a.output_mask[2]),
          a.output_mask[3] ? empty_in_kernel_layout(a.input) : Tensor()};
}

// What a backward keeps for its own backward, which differentiates a composition of differentiable operations.
enum KeptOfBackward { kGradOutput, kX, kWeightOfX, kBiasOfX, kResidualOfX, kOutputOfX, kMeanOfX, kRstdOfX, kRngState };

template <class Op>
Gradients record_backward(const Op& a, const Tensor& rng_state, double p) {
  const Gradient<Op> gradient(a);
  gradient->attributes = {check_activation(a.act, a.act_args), a.training, a.eps, p};
  const Gradients results = call_below(a);
  size_t place = 0;
  for (const Tensor& t : {a.grad_output, a.input, or_undefined(a.weight), or_undefined(a.bias),
                          or_undefined(a.residual), or_undefined(a.output), a.save_mean, a.save_rstd, rng_state}) {
    gradient.keep(place++, t);
  }
  std::apply([&](const auto&... result) { (gradient.of(result), ...); }, results);
  return results;
}

template <class Op>
Tensors differentiate_backward(const Recorded<Op>& node, const Tensors& grads, const Tensors& kept) {
  const bool create_graph = at::GradMode::is_enabled();
  const at::AutoGradMode recording(true);
  const BatchNormAttributes& a = node.attributes;
  Tensors saved = kept;
  for (size_t i = 0; i < kRngState; ++i) saved[i] = as_variable(saved[i]);
  const Tensor &dy = saved[kGradOutput], &x = saved[kX], &weight = saved[kWeightOfX], &bias = saved[kBiasOfX];
  const Tensor &residual = saved[kResidualOfX], &output = saved[kOutputOfX], &rng_state = saved[kRngState];
  const auto type = at::toOpMathType(x.scalar_type());

  Tensor z = normalize(x.to(type), weight, bias, saved[kMeanOfX], saved[kRstdOfX], a.training, a.eps);
  Tensor seed = dy.to(type);
  if (rng_state.defined()) seed = call_dropout_backward(seed, rng_state, a.p);
  if (output.defined()) {
    seed = call_activation_backward(seed, output.to(type), a.act);
  } else {
    if (residual.defined()) z = z + residual.to(type);
    z = call_activation(z, a.act);
  }
  Tensors first = gradients_of({z}, {x, weight, bias, residual}, {seed}, /*create_graph=*/true);
  // The residual's gradient where the residual was not kept.
  if (!residual.defined()) first[3] = seed;
  return gradients_of(first, {dy, x, weight, bias, residual, output}, grads, create_graph);
}

struct BatchNormActBackwardOp {
  // The gradients of batch_norm_act. With a residual, the activation's derivative is read off output, or z is
  // recomputed from residual.
  static constexpr const char* schema =
      "batch_norm_act_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, "
      "Tensor? output, Tensor save_mean, Tensor save_rstd, str act, float[] act_args, bool training, float eps, "
      "bool[4] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)";
  using Results = Gradients;
  const Tensor &grad_output, &input;
  const OptionalTensor &weight, &bias, &residual, &output;
  const Tensor &save_mean, &save_rstd;
  std::string_view act;
  at::ArrayRef<double> act_args;
  bool training;
  double eps;
  std::array<bool, 4> output_mask;

  using Attributes = BatchNormAttributes;
  static constexpr int kKept = kRngState + 1;
  auto differentiable() const { return std::tie(grad_output, input, weight, bias, residual, output); }

  Results run() const {
    check_activation(act, act_args);
    check_batch_norm_backward(*this);
    if (input.is_meta()) return empty_gradients(*this);
    const Tensor mean = save_mean.contiguous(), rstd = save_rstd.contiguous();
    return input_gradients(*this, mean.const_data_ptr<double>(), rstd.const_data_ptr<double>(), {});
  }
  Results record() const { return record_backward(*this, Tensor(), 0); }
  static Tensors differentiate(const Recorded<BatchNormActBackwardOp>& node, const Tensors& grads,
                               const Tensors& kept) {
    return differentiate_backward(node, grads, kept);
  }
};

struct BatchNormActDropoutBackwardOp {
  // The gradients of batch_norm_act_dropout. With a residual, the derivative of relu is read off output, and z of
  // others recomputed from residual.
  static constexpr const char* schema =
      "batch_norm_act_dropout_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, "
      "Tensor? residual, Tensor? output, Tensor save_mean, Tensor save_rstd, Tensor rng_state, str act, "
      "float[] act_args, bool training, float eps, float p, bool[4] output_mask) -> (Tensor grad_input, "
      "Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)";
  using Results = Gradients;
  const Tensor &grad_output, &input;
  const OptionalTensor &weight, &bias, &residual, &output;
  const Tensor &save_mean, &save_rstd, &rng_state;
  std::string_view act;
  at::ArrayRef<double> act_args;
  bool training;
  double eps, p;
  std::array<bool, 4> output_mask;

  using Attributes = BatchNormAttributes;
  static constexpr int kKept = kRngState + 1;
  auto differentiable() const { return std::tie(grad_output, input, weight, bias, residual, output); }

  Results run() const {
    const DropRate rate = check_dropout(p, "inverted");
    check_rng_state(rng_state, grad_output);
    check_kept_behind_dropout(check_activation(act, act_args), output);
    check_batch_norm_backward(*this);
    if (input.is_meta()) return empty_gradients(*this);
    const Tensor mean = save_mean.contiguous(), rstd = save_rstd.contiguous(), state = rng_state.contiguous();
    return input_gradients(*this, mean.const_data_ptr<double>(), rstd.const_data_ptr<double>(),
                           recorded_mask(rate, state));
  }
  Results record() const { return record_backward(*this, rng_state, p); }
  static Tensors differentiate(const Recorded<BatchNormActDropoutBackwardOp>& node, const Tensors& grads,
                               const Tensors& kept) {
    return differentiate_backward(node, grads, kept);
  }
};

}  // namespace fusedtricks

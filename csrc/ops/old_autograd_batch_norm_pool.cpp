// Gradients of batch_norm_act_max_pool2d, and the gradients of those.
//
// Kept for backward: the input, two values per channel, and a byte an output, the place of its maximum.
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/remainder.h>

#include "ops/old_autograd_batch_norm.h"

namespace fusedtricks::autograd {
namespace {

using Pair = at::IntArrayRef;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

struct PoolAttributes {
  BatchNormAttributes norm;
  std::vector<int64_t> kernel_size, stride, padding, dilation;
  bool ceil_mode;
};

PoolAttributes attributes(c10::string_view act, at::ArrayRef<double> act_args, Pair kernel_size, Pair stride,
                          Pair padding, Pair dilation, bool ceil_mode, bool training, double eps) {
  return {{{std::string(act), act_args.vec()}, training, eps},
          kernel_size.vec(),
          stride.vec(),
          padding.vec(),
          dilation.vec(),
          ceil_mode};
}

Gradients call_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight,
                        const OptionalTensor& bias, const Tensor& argmax, const Tensor& mean, const Tensor& rstd,
                        const PoolAttributes& a, std::array<bool, 3> mask) {
  return ops::batch_norm_act_max_pool2d_backward(grad_output, input, weight, bias, argmax, mean, rstd, a.norm.act.name,
                                                 a.norm.act.arguments, a.kernel_size, a.stride, a.padding, a.dilation,
                                                 a.ceil_mode, a.norm.training, a.norm.eps, mask);
}

// Where along an axis the elements at some places of the windows lie.
Tensor positions(const Tensor& place, const PoolAttributes& a, int axis) {
  Tensor start = at::arange(place.size(2 + axis), place.options()) * a.stride[axis] - a.padding[axis];
  if (axis == 0) start = start.unsqueeze(1);
  return start + place * a.dilation[axis];
}

// The maxima of y, whose places are known.
Tensor pooled(const Tensor& y, const Tensor& argmax, const PoolAttributes& a) {
  const Tensor place = argmax.to(at::kLong);
  const Tensor row = positions(at::div(place, a.kernel_size[1], "floor"), a, 0);
  const Tensor column = positions(at::remainder(place, a.kernel_size[1]), a, 1);
  const Tensor index = row * y.size(3) + column;
  return y.flatten(2).gather(2, index.flatten(2)).view_as(index);
}

struct BatchNormActMaxPool2dBackward : Function<BatchNormActMaxPool2dBackward> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& input,
                               const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& argmax,
                               const Tensor& save_mean, const Tensor& save_rstd, const PoolAttributes& a,
                               std::array<bool, 3> mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [dx, dw, db] = call_backward(grad_output, input, weight, bias, argmax, save_mean, save_rstd, a, mask);
    ctx->save_for_backward(
        {grad_output, input, or_undefined(weight), or_undefined(bias), argmax, save_mean, save_rstd});
    ctx->set_materialize_grads(false);
    keep(ctx, a);
    // An autograd function returns tensors only: an empty one for a gradient that is not wanted.
    const auto or_empty = [&](const Tensor& t) { return t.defined() ? t : at::empty({0}, input.options()); };
    return {or_empty(dx), or_empty(dw), or_empty(db)};
  }

  // The backward written in differentiable operations, and differentiated.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const bool create_graph = at::GradMode::is_enabled();
    at::AutoGradMode recording(true);
    const auto a = kept<PoolAttributes>(ctx);
    auto saved = ctx->get_saved_variables();
    for (size_t i = 0; i < 4; ++i) saved[i] = as_variable(saved[i]);
    const Tensor &dy = saved[0], &x = saved[1], &weight = saved[2], &bias = saved[3];
    const auto type = at::toOpMathType(x.scalar_type());

    const Tensor z = normalize(x.to(type), weight, bias, saved[5], saved[6], a.norm.training, a.norm.eps);
    const Tensor y = pooled(ops::activation(z, a.norm.act.name, a.norm.act.arguments), saved[4], a);
    const variable_list first = gradients_of({y}, {x, weight, bias}, {dy.to(type)}, /*create_graph=*/true);
    const variable_list second = gradients_of(first, {dy, x, weight, bias}, grads, create_graph);
    variable_list result(9);
    std::copy(second.begin(), second.end(), result.begin());
    return result;
  }
};

Gradients batch_norm_act_max_pool2d_backward(const Tensor& grad_output, const Tensor& input,
                                             const OptionalTensor& weight, const OptionalTensor& bias,
                                             const Tensor& argmax, const Tensor& save_mean, const Tensor& save_rstd,
                                             c10::string_view act, at::ArrayRef<double> act_args, Pair kernel_size,
                                             Pair stride, Pair padding, Pair dilation, bool ceil_mode, bool training,
                                             double eps, std::array<bool, 3> mask) {
  const auto a = attributes(act, act_args, kernel_size, stride, padding, dilation, ceil_mode, training, eps);
  if (!records(grad_output, input, weight, bias)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(grad_output, input, weight, bias, argmax, save_mean, save_rstd, a, mask);
  }
  const auto g =
      BatchNormActMaxPool2dBackward::apply(grad_output, input, weight, bias, argmax, save_mean, save_rstd, a, mask);
  const auto if_wanted = [&](size_t i) { return mask[i] ? g[i] : Tensor(); };
  return {if_wanted(0), if_wanted(1), if_wanted(2)};
}

struct BatchNormActMaxPool2d : Function<BatchNormActMaxPool2d> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& weight,
                               const OptionalTensor& bias, const Statistics& s, const PoolAttributes& a) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, argmax, mean, rstd] =
        ops::batch_norm_act_max_pool2d(input, s.running_mean, s.running_var, s.num_batches_tracked, weight, bias,
                                       a.norm.act.name, a.norm.act.arguments, a.kernel_size, a.stride, a.padding,
                                       a.dilation, a.ceil_mode, a.norm.training, s.momentum, a.norm.eps);
    ctx->save_for_backward({input, or_undefined(weight), or_undefined(bias), argmax, mean, rstd});
    ctx->mark_non_differentiable({argmax, mean, rstd});
    ctx->set_materialize_grads(false);
    keep(ctx, a);
    ctx->saved_data["present"] = std::vector<bool>{true, weight.has_value(), bias.has_value()};
    return {output, argmax, mean, rstd};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(5);
    const Tensor& dy = grads[0];
    if (!dy.defined()) return result;
    const auto saved = ctx->get_saved_variables();
    std::array<bool, 3> mask{};
    const auto present = ctx->saved_data["present"].toBoolList();
    for (size_t i = 0, edge = 0; i < 3; ++i) mask[i] = present[i] && ctx->needs_input_grad(edge++);
    std::tie(result[0], result[1], result[2]) =
        call_backward(dy, saved[0], or_none(saved[1]), or_none(saved[2]), saved[3], saved[4], saved[5],
                      kept<PoolAttributes>(ctx), mask);
    return result;
  }
};

Results batch_norm_act_max_pool2d(const Tensor& input, const OptionalTensor& running_mean,
                                  const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked,
                                  const OptionalTensor& weight, const OptionalTensor& bias, c10::string_view act,
                                  at::ArrayRef<double> act_args, Pair kernel_size, Pair stride, Pair padding,
                                  Pair dilation, bool ceil_mode, bool training, std::optional<double> momentum,
                                  double eps) {
  Results results;
  const Statistics statistics{running_mean, running_var, num_batches_tracked, momentum};
  if (records(input, weight, bias)) {
    const auto r = BatchNormActMaxPool2d::apply(
        input, weight, bias, statistics,
        attributes(act, act_args, kernel_size, stride, padding, dilation, ceil_mode, training, eps));
    results = {r[0], r[1], r[2], r[3]};
  } else {
    at::AutoDispatchBelowADInplaceOrView below;
    results = ops::batch_norm_act_max_pool2d(input, running_mean, running_var, num_batches_tracked, weight, bias, act,
                                             act_args, kernel_size, stride, padding, dilation, ceil_mode, training,
                                             momentum, eps);
  }
  if (training) statistics.bump_versions();
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, Autograd, m) {
  m.impl("batch_norm_act_max_pool2d", batch_norm_act_max_pool2d);
  m.impl("batch_norm_act_max_pool2d_backward", batch_norm_act_max_pool2d_backward);
}

}  // namespace fusedtricks::autograd

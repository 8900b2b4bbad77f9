// Gradients of the activations: one tensor is kept, the result where the derivative can be read off it.
#include <ATen/TensorOperators.h>

#include "ops/old_autograd.h"

namespace fusedtricks::autograd {
namespace {

struct ActivationSlope : Function<ActivationSlope> {
  static Tensor forward(AutogradContext*, const Tensor& grad, const Tensor& saved, const NamedActivation& act) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::activation_backward_slope(grad, saved, act.name, act.arguments);
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "fusedtricks activations can be differentiated twice, not three times");
  }
};

Tensor activation_backward_slope(const Tensor& grad, const Tensor& saved, c10::string_view act,
                                 at::ArrayRef<double> act_args) {
  const NamedActivation named{std::string(act), act_args.vec()};
  return ActivationSlope::apply(grad, saved, named);
}

struct ActivationBackward : Function<ActivationBackward> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& saved,
                        const NamedActivation& act) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({grad_output, saved});
    ctx->set_materialize_grads(false);
    keep(ctx, act);
    return ops::activation_backward(grad_output, saved, act.name, act.arguments);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor& g = grads[0];
    if (!g.defined()) return variable_list(3);
    const auto saved = ctx->get_saved_variables();
    const auto act = kept<NamedActivation>(ctx);
    variable_list out(3);
    if (ctx->needs_input_grad(0)) out[0] = ops::activation_backward(g, saved[1], act.name, act.arguments);
    if (ctx->needs_input_grad(1)) {
      out[1] = ops::activation_backward_slope(g * saved[0], saved[1], act.name, act.arguments);
    }
    return out;
  }
};

Tensor activation_backward(const Tensor& grad_output, const Tensor& saved, c10::string_view act,
                           at::ArrayRef<double> act_args) {
  if (!records(grad_output, saved)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::activation_backward(grad_output, saved, act, act_args);
  }
  return ActivationBackward::apply(grad_output, saved, NamedActivation{std::string(act), act_args.vec()});
}

variable_list activation_gradient(AutogradContext* ctx, const Tensor& grad_output) {
  if (!grad_output.defined()) return variable_list(2);
  const auto act = kept<NamedActivation>(ctx);
  return {ops::activation_backward(grad_output, ctx->get_saved_variables()[0], act.name, act.arguments), Tensor()};
}

struct ActivationFunction : Function<ActivationFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const NamedActivation& act) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor output = ops::activation(input, act.name, act.arguments);
    ctx->save_for_backward({act.resolve().keeps_result() ? output : input});
    ctx->set_materialize_grads(false);
    keep(ctx, act);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return activation_gradient(ctx, grads[0]);
  }
};

Tensor activation(const Tensor& input, c10::string_view act, at::ArrayRef<double> act_args) {
  if (!records(input)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::activation(input, act, act_args);
  }
  return ActivationFunction::apply(input, NamedActivation{std::string(act), act_args.vec()});
}

// An activation that keeps its input works on a copy of it, as stock in-place activations do: `original` is that copy,
// through which the gradient goes. One that keeps its result has none.
struct ActivationInPlace : Function<ActivationInPlace> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& original,
                        const NamedActivation& act) {
    at::AutoDispatchBelowADInplaceOrView below;
    ops::activation_(input, act.name, act.arguments);
    ctx->mark_dirty({input});
    ctx->save_for_backward({original ? *original : input});
    ctx->set_materialize_grads(false);
    keep(ctx, act);
    ctx->saved_data["copied"] = original.has_value();
    return input;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor gradient = activation_gradient(ctx, grads[0])[0];
    const bool copied = ctx->saved_data["copied"].toBool();
    return {copied ? Tensor() : gradient, copied ? gradient : Tensor(), Tensor()};
  }
};

void activation_inplace(const Tensor& input, c10::string_view act, at::ArrayRef<double> act_args) {
  const bool recorded = records(input);
  torch::autograd::check_inplace(input, recorded);
  if (recorded) {
    const NamedActivation named{std::string(act), act_args.vec()};
    const OptionalTensor original = named.resolve().keeps_result() ? std::nullopt : OptionalTensor(input.clone());
    ActivationInPlace::apply(input, original, named);
    return;
  }
  at::AutoDispatchBelowADInplaceOrView below;
  ops::activation_(input, act, act_args);
  bump_version(input);
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, Autograd, m) {
  m.impl("activation", activation);
  m.impl("activation_", activation_inplace);
  m.impl("activation_backward", activation_backward);
  m.impl("activation_backward_slope", activation_backward_slope);
}

}  // namespace fusedtricks::autograd

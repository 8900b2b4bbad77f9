// Gradients of dropout(act(x + bias)) + residual, and the gradients of those.
//
// Kept for backward: of relu the output alone, which shows both what was dropped and the derivative; of the identity
// the seed; of others the seed and one tensor, the output where the derivative can be read off it, else the input.
#include <ATen/TensorOperators.h>

#include "ops/old_autograd.h"

namespace fusedtricks::autograd {
namespace {

struct ActDropoutAttributes {
  NamedActivation act;
  double p;
  bool keeps_output;  // else the input, or nothing

  double scale() const { return DropRate::make(p, DropMode::kInverted).scale; }
};

// Whether act' of an element can be told from scale * act(z).
bool survives_scaling(const Activation& act) {
  return act.keeps_result() && act.info().name != ReLU6<double>::info.name;
}

// Whether that also tells that it was dropped: where it is zero, so is act'.
bool shows_mask(const Activation& act) { return act.info().name == ReLU<double>::info.name; }

struct ActDropoutBackward : Function<ActDropoutBackward> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const OptionalTensor& input,
                               const OptionalTensor& output, const OptionalTensor& bias,
                               const OptionalTensor& rng_state, const ActDropoutAttributes& a,
                               std::array<bool, 2> mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [dx, db] =
        ops::act_dropout_backward(grad_output, input, output, bias, rng_state, a.act.name, a.act.arguments, a.p, mask);
    ctx->save_for_backward(
        {grad_output, or_undefined(input ? input : output), or_undefined(bias), or_undefined(rng_state)});
    ctx->set_materialize_grads(false);
    keep(ctx, a);
    // An autograd function returns tensors only: an empty one for a gradient that is not wanted.
    const auto or_empty = [&](const Tensor& t) { return t.defined() ? t : at::empty({0}, grad_output.options()); };
    return {or_empty(dx), or_empty(db)};
  }

  // dx = drop(dy) act', dbias its sum; act' at z = input + bias, or read off act(z), which is output / scale.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto a = kept<ActDropoutAttributes>(ctx);
    const auto saved = ctx->get_saved_variables();
    const Tensor &dy = saved[0], &bias = saved[2], &rng_state = saved[3];
    variable_list result(7);
    Tensor g = grads[0];
    if (grads[1].defined()) {
      const Tensor of_bias = grads[1].to(dy.scalar_type());
      g = g.defined() ? g + of_bias : of_bias.expand_as(dy).contiguous();
    }
    if (!g.defined()) return result;
    const auto drop = [&](const Tensor& t) {
      if (rng_state.defined()) return ops::dropout_backward(t, rng_state, a.p, "inverted");
      return a.p > 0 ? t * a.scale() : t;
    };
    if (!saved[1].defined()) {
      result[0] = drop(g);
      return result;
    }
    const auto& [name, arguments] = a.act;
    const bool reads_result = a.act.resolve().keeps_result();
    Tensor at = saved[1];
    if (a.keeps_output) {
      at = at / a.scale();
    } else {
      if (bias.defined()) at = (at + bias).to(dy.scalar_type());
      if (reads_result) at = ops::activation(at, name, arguments);
    }
    result[0] = drop(ops::activation_backward(g, at, name, arguments));
    Tensor slope = ops::activation_backward_slope(g * drop(dy), at, name, arguments);
    if (a.keeps_output) {
      result[2] = slope / a.scale();
      return result;
    }
    if (reads_result) slope = ops::activation_backward(slope, at, name, arguments);
    result[1] = slope;
    if (bias.defined()) result[3] = slope.sum_to_size(bias.sizes()).to(bias.scalar_type());
    return result;
  }
};

std::tuple<Tensor, Tensor> act_dropout_backward(const Tensor& grad_output, const OptionalTensor& input,
                                                const OptionalTensor& output, const OptionalTensor& bias,
                                                const OptionalTensor& rng_state, c10::string_view act,
                                                at::ArrayRef<double> act_args, double p, std::array<bool, 2> mask) {
  if (!records(grad_output, input, output, bias)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::act_dropout_backward(grad_output, input, output, bias, rng_state, act, act_args, p, mask);
  }
  const ActDropoutAttributes a{{std::string(act), act_args.vec()}, p, !input && output};
  const auto g = ActDropoutBackward::apply(grad_output, input, output, bias, rng_state, a, mask);
  return {mask[0] ? g[0] : Tensor(), mask[1] ? g[1] : Tensor()};
}

struct ActDropout : Function<ActDropout> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& bias,
                               const OptionalTensor& residual, const NamedActivation& named, double p,
                               std::optional<int64_t> seed) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, rng_state] = ops::act_dropout(input, bias, residual, named.name, named.arguments, p, seed);
    const Activation act = named.resolve();
    const bool has_mask = rng_state.numel();
    const bool keeps_output = !residual && (has_mask ? survives_scaling(act) : act.keeps_result());
    const bool needs_mask = has_mask && !(keeps_output && shows_mask(act));
    const Tensor saved = act.is_identity() ? Tensor() : keeps_output ? output : input;
    ctx->save_for_backward({saved, or_undefined(bias), needs_mask ? rng_state : Tensor()});
    ctx->mark_non_differentiable({rng_state});
    ctx->set_materialize_grads(false);
    keep(ctx, ActDropoutAttributes{named, p, keeps_output});
    ctx->saved_data["present"] = std::vector<bool>{bias.has_value(), residual.has_value()};
    return {output, rng_state};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(6);
    const Tensor& dy = grads[0];
    if (!dy.defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const auto a = kept<ActDropoutAttributes>(ctx);
    const auto present = ctx->saved_data["present"].toBoolList();
    const bool has_bias = present[0], has_residual = present[1];
    const std::array<bool, 2> mask{ctx->needs_input_grad(0), has_bias && ctx->needs_input_grad(1)};
    if (mask[0] || mask[1]) {
      const OptionalTensor kept_tensor = or_none(saved[0]);
      std::tie(result[0], result[1]) = ops::act_dropout_backward(
          dy, a.keeps_output ? std::nullopt : kept_tensor, a.keeps_output ? kept_tensor : std::nullopt,
          or_none(saved[1]), or_none(saved[2]), a.act.name, a.act.arguments, a.p, mask);
    }
    if (has_residual && ctx->needs_input_grad(has_bias ? 2 : 1)) result[2] = dy;
    return result;
  }
};

std::tuple<Tensor, Tensor> act_dropout(const Tensor& input, const OptionalTensor& bias, const OptionalTensor& residual,
                                       c10::string_view act, at::ArrayRef<double> act_args, double p,
                                       std::optional<int64_t> seed) {
  if (!records(input, bias, residual)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::act_dropout(input, bias, residual, act, act_args, p, seed);
  }
  const auto results =
      ActDropout::apply(input, bias, residual, NamedActivation{std::string(act), act_args.vec()}, p, seed);
  return {results[0], results[1]};
}

// Under autocast a residual may come in another dtype than the input: the sum is then of the wider type, as in stock.
std::tuple<Tensor, Tensor> act_dropout_autocast(const Tensor& input, const OptionalTensor& bias,
                                                const OptionalTensor& residual, c10::string_view act,
                                                at::ArrayRef<double> act_args, double p, std::optional<int64_t> seed) {
  const auto no_autocast = without_autocast();
  const auto [x, r] = to_wider(input, residual);
  return ops::act_dropout(x, bias, r, act, act_args, p, seed);
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, Autograd, m) {
  m.impl("act_dropout", act_dropout);
  m.impl("act_dropout_backward", act_dropout_backward);
}

TORCH_LIBRARY_IMPL(fusedtricks, AutocastCPU, m) { m.impl("act_dropout", act_dropout_autocast); }
TORCH_LIBRARY_IMPL(fusedtricks, AutocastCUDA, m) { m.impl("act_dropout", act_dropout_autocast); }

}  // namespace fusedtricks::autograd

// Gradients of batch_norm_act, and the gradients of those.
//
// Kept for backward: the input, and two values per channel. With a residual also the output, where the activation's
// derivative can be read off it (the next layer keeps it anyway), else the residual. Behind dropout that is so of relu
// alone, whose result also says what was kept; of others the seed is kept besides, and z computed again.
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/alias.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rsqrt.h>

#include "ops/old_autograd_batch_norm.h"

namespace fusedtricks::autograd {
namespace {

using Results = std::tuple<Tensor, Tensor, Tensor>;
using DroppedResults = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// One value per channel as a tensor that broadcasts against x.
Tensor per_channel(const Tensor& t, const Tensor& x) {
  std::vector<int64_t> shape(x.dim(), 1);
  shape[1] = -1;
  return t.view(shape);
}

}  // namespace

void Statistics::bump_versions() const {
  for (const auto* t : {&running_mean, &running_var, &num_batches_tracked}) bump_version(or_undefined(*t));
}

Tensor normalize(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& rstd,
                 bool training, double eps) {
  Tensor xhat;
  if (training) {
    std::vector<int64_t> dims{0};
    for (int64_t d = 2; d < x.dim(); ++d) dims.push_back(d);
    const Tensor centred = x - x.mean(dims, /*keepdim=*/true);
    xhat = centred * at::rsqrt(centred.square().mean(dims, /*keepdim=*/true) + eps);
  } else {
    xhat = (x - per_channel(mean, x).to(x.scalar_type())) * per_channel(rstd, x).to(x.scalar_type());
  }
  if (weight.defined()) xhat = xhat * per_channel(weight, x);
  if (bias.defined()) xhat = xhat + per_channel(bias, x);
  return xhat;
}

variable_list gradients_of(const variable_list& outputs, const variable_list& inputs, const variable_list& grads,
                           bool create_graph) {
  variable_list wanted, used_outputs, used_grads;
  for (const auto& t : inputs) {
    if (t.defined()) wanted.push_back(t);
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].defined() || !grads[i].defined() || !outputs[i].requires_grad()) continue;
    used_outputs.push_back(outputs[i]);
    used_grads.push_back(grads[i]);
  }
  variable_list found(wanted.size());
  if (!used_outputs.empty() && !wanted.empty()) {
    found = torch::autograd::grad(used_outputs, wanted, used_grads, /*retain_graph=*/true, create_graph,
                                  /*allow_unused=*/true);
  }
  variable_list result;
  size_t next = 0;
  for (const auto& t : inputs) result.push_back(t.defined() ? found[next++] : Tensor());
  return result;
}

Tensor as_variable(const Tensor& t) {
  if (!t.defined()) return t;
  return t.requires_grad() ? at::alias(t) : t.detach().requires_grad_();
}

namespace {

// The operator of the backward, that of dropout where there is one.
Gradients call_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& residual, const OptionalTensor& output,
                        const Tensor& save_mean, const Tensor& save_rstd, const OptionalTensor& rng_state,
                        const BatchNormAttributes& a, std::array<bool, 4> mask) {
  if (!a.p) {
    return ops::batch_norm_act_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd,
                                        a.act.name, a.act.arguments, a.training, a.eps, mask);
  }
  return ops::batch_norm_act_dropout_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd,
                                              *rng_state, a.act.name, a.act.arguments, a.training, a.eps, *a.p, mask);
}

struct BatchNormActBackward : Function<BatchNormActBackward> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& input,
                               const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                               const OptionalTensor& output, const Tensor& save_mean, const Tensor& save_rstd,
                               const OptionalTensor& rng_state, const BatchNormAttributes& a,
                               std::array<bool, 4> mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [dx, dw, db, dr] =
        call_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd, rng_state, a, mask);
    ctx->save_for_backward({grad_output, input, or_undefined(weight), or_undefined(bias), or_undefined(residual),
                            or_undefined(output), save_mean, save_rstd, or_undefined(rng_state)});
    ctx->set_materialize_grads(false);
    keep(ctx, a);
    // An autograd function returns tensors only: an empty one for a gradient that is not wanted.
    const auto or_empty = [&](const Tensor& t) { return t.defined() ? t : at::empty({0}, input.options()); };
    return {or_empty(dx), or_empty(dw), or_empty(db), or_empty(dr)};
  }

  // The backward written in differentiable operations, and differentiated.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const bool create_graph = at::GradMode::is_enabled();
    at::AutoGradMode recording(true);
    const auto a = kept<BatchNormAttributes>(ctx);
    auto saved = ctx->get_saved_variables();
    for (size_t i = 0; i < 8; ++i) saved[i] = as_variable(saved[i]);
    const Tensor &dy = saved[0], &x = saved[1], &weight = saved[2], &bias = saved[3], &residual = saved[4],
                 &output = saved[5];
    const auto type = at::toOpMathType(x.scalar_type());

    Tensor z = normalize(x.to(type), weight, bias, saved[6], saved[7], a.training, a.eps);
    Tensor seed = dy.to(type);
    if (a.p) seed = ops::dropout_backward(seed, saved[8], *a.p, "inverted");
    if (output.defined()) {
      seed = ops::activation_backward(seed, output.to(type), a.act.name, a.act.arguments);
    } else {
      if (residual.defined()) z = z + residual.to(type);
      z = ops::activation(z, a.act.name, a.act.arguments);
    }
    variable_list first = gradients_of({z}, {x, weight, bias, residual}, {seed}, /*create_graph=*/true);
    // The residual's gradient where the residual was not kept.
    if (!residual.defined()) first[3] = seed;

    variable_list second = gradients_of(first, {dy, x, weight, bias, residual, output}, grads, create_graph);
    variable_list result(11);
    std::copy(second.begin(), second.end(), result.begin());
    return result;
  }
};

Gradients recorded_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& residual, const OptionalTensor& output,
                            const Tensor& save_mean, const Tensor& save_rstd, const OptionalTensor& rng_state,
                            const BatchNormAttributes& a, std::array<bool, 4> mask) {
  const auto g = BatchNormActBackward::apply(grad_output, input, weight, bias, residual, output, save_mean, save_rstd,
                                             rng_state, a, mask);
  const auto if_wanted = [&](size_t i) { return mask[i] ? g[i] : Tensor(); };
  return {if_wanted(0), if_wanted(1), if_wanted(2), if_wanted(3)};
}

Gradients batch_norm_act_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight,
                                  const OptionalTensor& bias, const OptionalTensor& residual,
                                  const OptionalTensor& output, const Tensor& save_mean, const Tensor& save_rstd,
                                  c10::string_view act, at::ArrayRef<double> act_args, bool training, double eps,
                                  std::array<bool, 4> mask) {
  if (!records(grad_output, input, weight, bias, residual, output)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::batch_norm_act_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd, act,
                                        act_args, training, eps, mask);
  }
  return recorded_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd, std::nullopt,
                           {{std::string(act), act_args.vec()}, training, eps, std::nullopt}, mask);
}

Gradients batch_norm_act_dropout_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight,
                                          const OptionalTensor& bias, const OptionalTensor& residual,
                                          const OptionalTensor& output, const Tensor& save_mean,
                                          const Tensor& save_rstd, const Tensor& rng_state, c10::string_view act,
                                          at::ArrayRef<double> act_args, bool training, double eps, double p,
                                          std::array<bool, 4> mask) {
  const BatchNormAttributes a{{std::string(act), act_args.vec()}, training, eps, p};
  if (!records(grad_output, input, weight, bias, residual, output)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd, rng_state, a, mask);
  }
  return recorded_backward(grad_output, input, weight, bias, residual, output, save_mean, save_rstd, rng_state, a,
                           mask);
}

// The operator of the forward, that of dropout where there is one; without, the last result is undefined.
DroppedResults call_forward(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& residual, const Statistics& s, const BatchNormAttributes& a,
                            std::optional<int64_t> seed) {
  if (a.p) {
    return ops::batch_norm_act_dropout(input, s.running_mean, s.running_var, s.num_batches_tracked, weight, bias,
                                       residual, a.act.name, a.act.arguments, a.training, s.momentum, a.eps, *a.p,
                                       seed);
  }
  return std::tuple_cat(ops::batch_norm_act(input, s.running_mean, s.running_var, s.num_batches_tracked, weight, bias,
                                            residual, a.act.name, a.act.arguments, a.training, s.momentum, a.eps),
                        std::make_tuple(Tensor()));
}

struct BatchNormAct : Function<BatchNormAct> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& residual, const Statistics& s,
                               const BatchNormAttributes& a, std::optional<int64_t> seed) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, mean, rstd, rng_state] = call_forward(input, weight, bias, residual, s, a, seed);
    const Activation act = a.act.resolve();
    const bool after_residual = residual && !act.is_identity();
    const bool keeps_output = after_residual && (a.p ? act.is_relu() : act.keeps_result());
    ctx->save_for_backward({input, or_undefined(weight), or_undefined(bias),
                            after_residual && !keeps_output ? *residual : Tensor(), keeps_output ? output : Tensor(),
                            mean, rstd, rng_state});
    ctx->mark_non_differentiable(a.p ? variable_list{mean, rstd, rng_state} : variable_list{mean, rstd});
    ctx->set_materialize_grads(false);
    keep(ctx, a);
    ctx->saved_data["present"] = std::vector<bool>{true, weight.has_value(), bias.has_value(), residual.has_value()};
    return a.p ? variable_list{output, mean, rstd, rng_state} : variable_list{output, mean, rstd};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(7);
    const Tensor& dy = grads[0];
    if (!dy.defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const auto a = kept<BatchNormAttributes>(ctx);

    std::array<bool, 4> mask{};
    const auto present = ctx->saved_data["present"].toBoolList();
    for (size_t i = 0, edge = 0; i < 4; ++i) mask[i] = present[i] && ctx->needs_input_grad(edge++);

    const bool passes_residual = mask[3] && !a.p && a.act.resolve().is_identity();
    if (passes_residual) mask[3] = false;
    std::tie(result[0], result[1], result[2], result[3]) =
        call_backward(dy, saved[0], or_none(saved[1]), or_none(saved[2]), or_none(saved[3]), or_none(saved[4]),
                      saved[5], saved[6], or_none(saved[7]), a, mask);
    if (passes_residual) result[3] = dy;
    return result;
  }
};

// Calls the operator, recorded where it must be.
DroppedResults recorded_forward(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& residual, const Statistics& s, const BatchNormAttributes& a,
                                std::optional<int64_t> seed) {
  DroppedResults results;
  if (records(input, weight, bias, residual)) {
    const auto r = BatchNormAct::apply(input, weight, bias, residual, s, a, seed);
    results = {r[0], r[1], r[2], a.p ? r[3] : Tensor()};
  } else {
    at::AutoDispatchBelowADInplaceOrView below;
    results = call_forward(input, weight, bias, residual, s, a, seed);
  }
  if (a.training) s.bump_versions();
  return results;
}

Results batch_norm_act(const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                       const OptionalTensor& num_batches_tracked, const OptionalTensor& weight,
                       const OptionalTensor& bias, const OptionalTensor& residual, c10::string_view act,
                       at::ArrayRef<double> act_args, bool training, std::optional<double> momentum, double eps) {
  const auto r =
      recorded_forward(input, weight, bias, residual, {running_mean, running_var, num_batches_tracked, momentum},
                       {{std::string(act), act_args.vec()}, training, eps, std::nullopt}, std::nullopt);
  return {std::get<0>(r), std::get<1>(r), std::get<2>(r)};
}

DroppedResults batch_norm_act_dropout(const Tensor& input, const OptionalTensor& running_mean,
                                      const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked,
                                      const OptionalTensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& residual, c10::string_view act,
                                      at::ArrayRef<double> act_args, bool training, std::optional<double> momentum,
                                      double eps, double p, std::optional<int64_t> seed) {
  return recorded_forward(input, weight, bias, residual, {running_mean, running_var, num_batches_tracked, momentum},
                          {{std::string(act), act_args.vec()}, training, eps, p}, seed);
}

// Under autocast a residual may come in another dtype than the input: the sum is then of the wider type, as in stock.
Results batch_norm_act_autocast(const Tensor& input, const OptionalTensor& running_mean,
                                const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked,
                                const OptionalTensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& residual, c10::string_view act, at::ArrayRef<double> act_args,
                                bool training, std::optional<double> momentum, double eps) {
  const auto no_autocast = without_autocast();
  const auto [x, r] = to_wider(input, residual);
  return ops::batch_norm_act(x, running_mean, running_var, num_batches_tracked, weight, bias, r, act, act_args,
                             training, momentum, eps);
}

DroppedResults batch_norm_act_dropout_autocast(const Tensor& input, const OptionalTensor& running_mean,
                                               const OptionalTensor& running_var,
                                               const OptionalTensor& num_batches_tracked, const OptionalTensor& weight,
                                               const OptionalTensor& bias, const OptionalTensor& residual,
                                               c10::string_view act, at::ArrayRef<double> act_args, bool training,
                                               std::optional<double> momentum, double eps, double p,
                                               std::optional<int64_t> seed) {
  const auto no_autocast = without_autocast();
  const auto [x, r] = to_wider(input, residual);
  return ops::batch_norm_act_dropout(x, running_mean, running_var, num_batches_tracked, weight, bias, r, act, act_args,
                                     training, momentum, eps, p, seed);
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, Autograd, m) {
  m.impl("batch_norm_act", batch_norm_act);
  m.impl("batch_norm_act_backward", batch_norm_act_backward);
  m.impl("batch_norm_act_dropout", batch_norm_act_dropout);
  m.impl("batch_norm_act_dropout_backward", batch_norm_act_dropout_backward);
}

TORCH_LIBRARY_IMPL(fusedtricks, AutocastCPU, m) {
  m.impl("batch_norm_act", batch_norm_act_autocast);
  m.impl("batch_norm_act_dropout", batch_norm_act_dropout_autocast);
}

TORCH_LIBRARY_IMPL(fusedtricks, AutocastCUDA, m) {
  m.impl("batch_norm_act", batch_norm_act_autocast);
  m.impl("batch_norm_act_dropout", batch_norm_act_dropout_autocast);
}

}  // namespace fusedtricks::autograd

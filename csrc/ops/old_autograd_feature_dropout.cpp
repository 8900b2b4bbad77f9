// Gradients of dropout by whole channels, samples or batches: a seed is kept, and the residual's gradient is
// grad_output itself.
#include "ops/old_autograd.h"

namespace fusedtricks::autograd {
namespace {

struct FeatureDropoutAttributes {
  int64_t mask_dims;
  double p;
  std::string mode;
};

Tensor gradient(AutogradContext* ctx, const Tensor& grad) {
  if (!grad.defined()) return Tensor();
  const auto [mask_dims, p, mode] = kept<FeatureDropoutAttributes>(ctx);
  return ops::feature_dropout_backward(grad, ctx->get_saved_variables()[0], mask_dims, p, mode);
}

void keep_mask(AutogradContext* ctx, const Tensor& rng_state, const FeatureDropoutAttributes& attributes) {
  ctx->save_for_backward({rng_state});
  ctx->set_materialize_grads(false);
  keep(ctx, attributes);
}

// Linear in grad_output: its gradient is itself.
struct FeatureDropoutBackward : Function<FeatureDropoutBackward> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& rng_state,
                        const FeatureDropoutAttributes& a) {
    at::AutoDispatchBelowADInplaceOrView below;
    keep_mask(ctx, rng_state, a);
    return ops::feature_dropout_backward(grad_output, rng_state, a.mask_dims, a.p, a.mode);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {gradient(ctx, grads[0]), Tensor(), Tensor()};
  }
};

Tensor feature_dropout_backward(const Tensor& grad_output, const Tensor& rng_state, int64_t mask_dims, double p,
                                c10::string_view mode) {
  if (!records(grad_output)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::feature_dropout_backward(grad_output, rng_state, mask_dims, p, mode);
  }
  return FeatureDropoutBackward::apply(grad_output, rng_state,
                                       FeatureDropoutAttributes{mask_dims, p, std::string(mode)});
}

struct FeatureDropout : Function<FeatureDropout> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& residual,
                               const FeatureDropoutAttributes& a, std::optional<int64_t> seed) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, rng_state] = ops::feature_dropout(input, residual, a.mask_dims, a.p, a.mode, seed);
    keep_mask(ctx, rng_state, a);
    ctx->mark_non_differentiable({rng_state});
    ctx->saved_data["residual"] = residual.has_value();
    return {output, rng_state};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const bool has_residual = ctx->saved_data["residual"].toBool();
    return {ctx->needs_input_grad(0) ? gradient(ctx, grads[0]) : Tensor(),
            has_residual && ctx->needs_input_grad(1) ? grads[0] : Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> feature_dropout(const Tensor& input, const OptionalTensor& residual, int64_t mask_dims,
                                           double p, c10::string_view mode, std::optional<int64_t> seed) {
  if (!records(input, residual)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::feature_dropout(input, residual, mask_dims, p, mode, seed);
  }
  const auto results =
      FeatureDropout::apply(input, residual, FeatureDropoutAttributes{mask_dims, p, std::string(mode)}, seed);
  return {results[0], results[1]};
}

// The input alone is returned, so that it may be a view; rng_state goes out by reference.
struct FeatureDropoutInPlace : Function<FeatureDropoutInPlace> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const FeatureDropoutAttributes& a,
                        std::optional<int64_t> seed, Tensor* rng_state) {
    at::AutoDispatchBelowADInplaceOrView below;
    *rng_state = ops::feature_dropout_(input, a.mask_dims, a.p, a.mode, seed);
    ctx->mark_dirty({input});
    keep_mask(ctx, *rng_state, a);
    return input;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {gradient(ctx, grads[0]), Tensor(), Tensor(), Tensor()};
  }
};

Tensor feature_dropout_inplace(const Tensor& input, int64_t mask_dims, double p, c10::string_view mode,
                               std::optional<int64_t> seed) {
  const bool recorded = records(input);
  torch::autograd::check_inplace(input, recorded);
  Tensor rng_state;
  if (recorded) {
    FeatureDropoutInPlace::apply(input, FeatureDropoutAttributes{mask_dims, p, std::string(mode)}, seed, &rng_state);
    return rng_state;
  }
  at::AutoDispatchBelowADInplaceOrView below;
  rng_state = ops::feature_dropout_(input, mask_dims, p, mode, seed);
  bump_version(input);
  return rng_state;
}

// Under autocast a residual may come in another dtype than the input: the sum is then of the wider type, as in stock.
std::tuple<Tensor, Tensor> feature_dropout_autocast(const Tensor& input, const OptionalTensor& residual,
                                                    int64_t mask_dims, double p, c10::string_view mode,
                                                    std::optional<int64_t> seed) {
  const auto no_autocast = without_autocast();
  const auto [x, r] = to_wider(input, residual);
  return ops::feature_dropout(x, r, mask_dims, p, mode, seed);
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, Autograd, m) {
  m.impl("feature_dropout", feature_dropout);
  m.impl("feature_dropout_", feature_dropout_inplace);
  m.impl("feature_dropout_backward", feature_dropout_backward);
}

TORCH_LIBRARY_IMPL(fusedtricks, AutocastCPU, m) { m.impl("feature_dropout", feature_dropout_autocast); }
TORCH_LIBRARY_IMPL(fusedtricks, AutocastCUDA, m) { m.impl("feature_dropout", feature_dropout_autocast); }

}  // namespace fusedtricks::autograd

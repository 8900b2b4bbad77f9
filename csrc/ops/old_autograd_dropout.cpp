// Gradients of dropout: nothing of the tensor's size is kept, the mask follows from seed and offset.
#include "ops/old_autograd.h"

namespace fusedtricks::autograd {
namespace {

struct DropoutAttributes {
  double p;
  std::string mode;
};

variable_list dropout_gradient(AutogradContext* ctx, const Tensor& grad, size_t inputs) {
  variable_list out(inputs);
  if (!grad.defined()) return out;
  const auto [p, mode] = kept<DropoutAttributes>(ctx);
  out[0] = ops::dropout_backward(grad, ctx->get_saved_variables()[0], p, mode);
  return out;
}

// Linear in grad_output: its gradient is itself.
struct DropoutBackward : Function<DropoutBackward> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& rng_state, double p,
                        c10::string_view mode) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({rng_state});
    ctx->set_materialize_grads(false);
    keep(ctx, DropoutAttributes{p, std::string(mode)});
    return ops::dropout_backward(grad_output, rng_state, p, mode);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return dropout_gradient(ctx, grads[0], 4);
  }
};

Tensor dropout_backward(const Tensor& grad_output, const Tensor& rng_state, double p, c10::string_view mode) {
  if (!records(grad_output)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::dropout_backward(grad_output, rng_state, p, mode);
  }
  return DropoutBackward::apply(grad_output, rng_state, p, mode);
}

struct Dropout : Function<Dropout> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, double p, c10::string_view mode,
                               std::optional<int64_t> seed) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, rng_state] = ops::dropout(input, p, mode, seed);
    ctx->save_for_backward({rng_state});
    ctx->mark_non_differentiable({rng_state});
    ctx->set_materialize_grads(false);
    keep(ctx, DropoutAttributes{p, std::string(mode)});
    return {output, rng_state};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return dropout_gradient(ctx, grads[0], 4);
  }
};

std::tuple<Tensor, Tensor> dropout(const Tensor& input, double p, c10::string_view mode, std::optional<int64_t> seed) {
  if (!records(input)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::dropout(input, p, mode, seed);
  }
  const auto results = Dropout::apply(input, p, mode, seed);
  return {results[0], results[1]};
}

// The input alone is returned, so that it may be a view; rng_state goes out by reference.
struct DropoutInPlace : Function<DropoutInPlace> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, double p, c10::string_view mode,
                        std::optional<int64_t> seed, Tensor* rng_state) {
    at::AutoDispatchBelowADInplaceOrView below;
    *rng_state = ops::dropout_(input, p, mode, seed);
    ctx->mark_dirty({input});
    ctx->save_for_backward({*rng_state});
    ctx->set_materialize_grads(false);
    keep(ctx, DropoutAttributes{p, std::string(mode)});
    return input;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return dropout_gradient(ctx, grads[0], 5);
  }
};

Tensor dropout_inplace(const Tensor& input, double p, c10::string_view mode, std::optional<int64_t> seed) {
  const bool recorded = records(input);
  torch::autograd::check_inplace(input, recorded);
  Tensor rng_state;
  if (recorded) {
    DropoutInPlace::apply(input, p, mode, seed, &rng_state);
    return rng_state;
  }
  at::AutoDispatchBelowADInplaceOrView below;
  rng_state = ops::dropout_(input, p, mode, seed);
  bump_version(input);
  return rng_state;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, Autograd, m) {
  m.impl("dropout", dropout);
  m.impl("dropout_", dropout_inplace);
  m.impl("dropout_backward", dropout_backward);
}

}  // namespace fusedtricks::autograd

// Gradients of fractional max-pooling. Kept are the place of each window's maximum, what the windows follow from (a
// seed, or the samples), and the result where the activation's derivative is read off it.
#include <ATen/TensorOperators.h>

#include "ops/old_autograd.h"
#include "checks/fractional_max_pool.h"

namespace fusedtricks::autograd {
namespace {

using Sizes = std::vector<int64_t>;
using SymSizes = std::vector<c10::SymInt>;

struct PoolAttributes {
  SymSizes input_size;
  Sizes kernel_size;
  bool channels_last;
  NamedActivation act;
};

enum Saved { kOutput, kArgmax, kSamples, kRngState };

Tensor backward_of(const Tensor& grad_output, const variable_list& saved, const PoolAttributes& a) {
  return ops::fractional_max_pool_backward(grad_output, or_none(saved[kOutput]), saved[kArgmax],
                                           or_none(saved[kSamples]), saved[kRngState], a.input_size, a.kernel_size,
                                           a.channels_last, a.act.name, a.act.arguments);
}

// From the gradient of the backward's result to those of what it took: what lies at each window's maximum, times the
// activation's derivative, and times grad_output and the derivative of that.
struct PoolBackward : Function<PoolBackward> {
  static constexpr size_t kInputs = 6;

  static Tensor forward(AutogradContext* ctx, const Tensor& grad_output, const OptionalTensor& output,
                        const Tensor& argmax, const OptionalTensor& samples, const Tensor& rng_state,
                        const PoolAttributes& attributes) {
    at::AutoDispatchBelowADInplaceOrView below;
    const variable_list saved{or_undefined(output), argmax, or_undefined(samples), rng_state};
    ctx->save_for_backward({saved[kOutput], argmax, saved[kSamples], rng_state, grad_output});
    ctx->set_materialize_grads(false);
    keep(ctx, attributes);
    return backward_of(grad_output, saved, attributes);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(kInputs);
    if (!grads[0].defined()) return out;
    const auto saved = ctx->get_saved_variables();
    const auto a = kept<PoolAttributes>(ctx);
    const Tensor &y = saved[kOutput], &dy = saved.back();
    const Tensor indices = ops::fractional_max_pool_indices(saved[kArgmax], or_none(saved[kSamples]), saved[kRngState],
                                                            a.input_size, a.kernel_size);
    const Tensor at_maxima = grads[0].flatten(2).gather(2, indices.flatten(2)).view_symint(indices.sym_sizes());
    if (!y.defined()) {
      out[0] = at_maxima;
      return out;
    }
    if (ctx->needs_input_grad(0)) out[0] = ops::activation_backward(at_maxima, y, a.act.name, a.act.arguments);
    if (ctx->needs_input_grad(1)) {
      out[1] = ops::activation_backward_slope(at_maxima * dy, y, a.act.name, a.act.arguments);
    }
    return out;
  }
};

Tensor fractional_max_pool_backward(const Tensor& grad_output, const OptionalTensor& output, const Tensor& argmax,
                                    const OptionalTensor& samples, const Tensor& rng_state,
                                    c10::SymIntArrayRef input_size, at::IntArrayRef kernel_size, bool channels_last,
                                    c10::string_view act, at::ArrayRef<double> act_args) {
  if (!records(grad_output, output)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::fractional_max_pool_backward(grad_output, output, argmax, samples, rng_state, input_size, kernel_size,
                                             channels_last, act, act_args);
  }
  return PoolBackward::apply(grad_output, output, argmax, samples, rng_state,
                             PoolAttributes{input_size.vec(), kernel_size.vec(), channels_last,
                                            NamedActivation{std::string(act), act_args.vec()}});
}

struct Pool : Function<Pool> {
  static constexpr size_t kInputs = 6;

  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Sizes& kernel_size,
                               const SymSizes& output_size, const OptionalTensor& samples, std::optional<int64_t> seed,
                               const NamedActivation& act) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, argmax, rng_state] =
        ops::fractional_max_pool(input, kernel_size, output_size, samples, seed, act.name, act.arguments);
    ctx->save_for_backward({act.resolve().is_identity() ? Tensor() : output, argmax, or_undefined(samples), rng_state});
    ctx->mark_non_differentiable({argmax, rng_state});
    ctx->set_materialize_grads(false);
    const auto input_size = input.sym_sizes().slice(2);
    keep(ctx, PoolAttributes{input_size.vec(), kernel_size, pool_format(input) != at::MemoryFormat::Contiguous, act});
    return {output, argmax, rng_state};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(kInputs);
    if (grads[0].defined()) out[0] = backward_of(grads[0], ctx->get_saved_variables(), kept<PoolAttributes>(ctx));
    return out;
  }
};

std::tuple<Tensor, Tensor, Tensor> fractional_max_pool(const Tensor& input, at::IntArrayRef kernel_size,
                                                       c10::SymIntArrayRef output_size, const OptionalTensor& samples,
                                                       std::optional<int64_t> seed, c10::string_view act,
                                                       at::ArrayRef<double> act_args) {
  if (!records(input)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::fractional_max_pool(input, kernel_size, output_size, samples, seed, act, act_args);
  }
  const auto results = Pool::apply(input, kernel_size.vec(), output_size.vec(), samples, seed,
                                   NamedActivation{std::string(act), act_args.vec()});
  return {results[0], results[1], results[2]};
}

Tensor fractional_max_pool_indices(const Tensor& argmax, const OptionalTensor& samples, const Tensor& rng_state,
                                   c10::SymIntArrayRef input_size, at::IntArrayRef kernel_size) {
  at::AutoDispatchBelowADInplaceOrView below;
  return ops::fractional_max_pool_indices(argmax, samples, rng_state, input_size, kernel_size);
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, Autograd, m) {
  m.impl("fractional_max_pool", fractional_max_pool);
  m.impl("fractional_max_pool_backward", fractional_max_pool_backward);
  m.impl("fractional_max_pool_indices", fractional_max_pool_indices);
}

}  // namespace fusedtricks::autograd

// Gradients of what moves whole samples of a batch: each is linear, and the backward of one is another. The index and
// no tensor of the batch's size is kept.
#include <ATen/ops/alias.h>

#include "ops/old_autograd.h"

namespace fusedtricks::autograd {
namespace {

struct AddSamples : Function<AddSamples> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& rows, const Tensor& index,
                        double scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({index});
    ctx->set_materialize_grads(false);
    keep(ctx, scale);
    return ops::add_samples(input, rows, index, scale);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(4);
    if (!grads[0].defined()) return out;
    if (ctx->needs_input_grad(0)) out[0] = grads[0];
    if (ctx->needs_input_grad(1)) {
      out[1] = ops::select_samples(grads[0], ctx->get_saved_variables()[0], kept<double>(ctx));
    }
    return out;
  }
};

Tensor add_samples(const Tensor& input, const Tensor& rows, const Tensor& index, double scale) {
  if (!records(input, rows)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::add_samples(input, rows, index, scale);
  }
  return AddSamples::apply(input, rows, index, scale);
}

struct SelectSamples : Function<SelectSamples> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& index, double scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({index});
    ctx->set_materialize_grads(false);
    keep(ctx, scale);
    keep_samples(ctx, input);
    return ops::select_samples(input, index, scale);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(3);
    if (!grads[0].defined()) return out;
    const Tensor index = ctx->get_saved_variables()[0];
    out[0] = ops::place_samples(grads[0], index, kept_samples(ctx), kept<double>(ctx));
    return out;
  }

  // The size of the batch, which is symbolic where a graph for any size is traced.
  static void keep_samples(AutogradContext* ctx, const Tensor& input) {
    ctx->saved_data["samples"] = input.sym_size(0);
  }
  static c10::SymInt kept_samples(AutogradContext* ctx) { return ctx->saved_data["samples"].toSymInt(); }
};

Tensor select_samples(const Tensor& input, const Tensor& index, double scale) {
  if (!records(input)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::select_samples(input, index, scale);
  }
  return SelectSamples::apply(input, index, scale);
}

struct PlaceSamples : Function<PlaceSamples> {
  static Tensor forward(AutogradContext* ctx, const Tensor& rows, const Tensor& index, c10::SymInt samples,
                        double scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({index});
    ctx->set_materialize_grads(false);
    keep(ctx, scale);
    return ops::place_samples(rows, index, std::move(samples), scale);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(4);
    if (!grads[0].defined()) return out;
    out[0] = ops::select_samples(grads[0], ctx->get_saved_variables()[0], kept<double>(ctx));
    return out;
  }
};

Tensor place_samples(const Tensor& rows, const Tensor& index, c10::SymInt samples, double scale) {
  if (!records(rows)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::place_samples(rows, index, std::move(samples), scale);
  }
  return PlaceSamples::apply(rows, index, std::move(samples), scale);
}

// Where a batch goes on as it is and some of its samples go into a branch: the two gradients meet in one pass.
struct BranchSamples : Function<BranchSamples> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& index) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({index});
    ctx->set_materialize_grads(false);
    SelectSamples::keep_samples(ctx, input);
    return {ops::select_samples(input, index, 1), at::alias(input)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor &rows = grads[0], &skip = grads[1], index = ctx->get_saved_variables()[0];
    variable_list out(2);
    if (!rows.defined()) {
      out[0] = skip;
    } else if (skip.defined()) {
      out[0] = ops::add_samples(skip, rows, index, 1);
    } else {
      out[0] = ops::place_samples(rows, index, SelectSamples::kept_samples(ctx), 1);
    }
    return out;
  }
};

// For any device: a composition.
std::tuple<Tensor, Tensor> branch_samples(const Tensor& input, const Tensor& index) {
  if (!records(input)) return {ops::select_samples(input, index, 1), at::alias(input)};
  const auto results = BranchSamples::apply(input, index);
  return {results[0], results[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, Autograd, m) {
  m.impl("add_samples", add_samples);
  m.impl("select_samples", select_samples);
  m.impl("place_samples", place_samples);
}

TORCH_LIBRARY_IMPL(fusedtricks, CompositeImplicitAutograd, m) { m.impl("branch_samples", branch_samples); }

}  // namespace fusedtricks::autograd

// act(batch_norm(input) [+ residual]), and its dropout.
//
// Kept for backward: the input, and two values per channel. With a residual also the output, where the activation's
// derivative can be read off it (the next layer keeps it anyway), else the residual. Behind dropout that is so of relu
// alone, whose result also says what was kept; of others the seed is kept besides, and z is computed again.
#include <ATen/ops/cat.h>
#include <c10/core/DeviceGuard.h>

#include "ops/autocast.h"
#include "ops/batch_norm_act_backward.h"
#include "ops/python.h"
#include "ops/random.h"

namespace fusedtricks {
namespace {

// All that a forward makes; rng_state of dropout alone.
struct ForwardResults {
  Tensor output;
  Statistics statistics;
  Tensor rng_state;
};

// The kernels of a forward but for what is written once a channel.
template <class Op>
BatchNormForward forward_of(const Op& a, const Tensor& x, const Tensor& residual, const Tensor& y,
                            const MaskSource& mask) {
  BatchNormForward call{};
  call.layout = layout_of(y);
  call.dtype = x.scalar_type();
  call.act = check_activation(a.act, a.act_args);
  call.x = x.const_data_ptr();
  call.residual = data_or_null(residual);
  call.y = y.data_ptr();
  call.weight = channel_values(a.weight);
  call.bias = channel_values(a.bias);
  call.mask = mask;
  return call;
}

// Runs the kernels of a forward. mask: that of dropout, or none. in_one_block: saves allocations, for callers that need
// only the output.
template <class Op>
ForwardResults normalize_and_activate(const Op& a, const MaskSource& mask, bool in_one_block) {
  const Tensor y = empty_in_kernel_layout(a.input);
  if (!a.input.numel()) {
    count_empty_batch(a);
    const Statistics none = Statistics::in_two(a.input);
    none.mean.zero_();
    none.rstd.zero_();
    return {y, none, Tensor()};
  }
  const Tensor x = laid_out_like(a.input, y), r = optional_laid_out_like(a.residual, y);
  BatchNormForward call = forward_of(a, x, r, y, mask);
  call.running_mean = channel_values(a.running_mean);
  call.running_var = channel_values(a.running_var);
  if (a.num_batches_tracked) call.num_batches_tracked = a.num_batches_tracked->template data_ptr<int64_t>();
  call.training = a.training;
  call.momentum = a.momentum.value_or(0);
  call.cumulative = !a.momentum && a.num_batches_tracked;
  call.eps = a.eps;
  const auto device = y.device().type();
  // The workspace is apart from the statistics: with them it would be kept until the backward.
  const Tensor memory = workspace(kernels::batch_norm_forward_workspace(device)(call), y);
  if (memory.defined()) call.workspace = memory.data_ptr();
  const Statistics statistics = in_one_block ? Statistics::in_one(y) : Statistics::in_two(y);
  call.mean = statistics.mean_data();
  call.rstd = statistics.rstd_data();
  kernels::batch_norm_forward(device)(call);
  return {y, statistics, Tensor()};
}

template <class Op>
void check_forward(const Op& a) {
  check_activation(a.act, a.act_args);
  check_batch_norm(a);
  if (a.residual) check_like(*a.residual, a.input, "residual", "input");
}

enum Kept { kInput, kWeight, kBias, kResidual, kOutput, kMean, kRstd, kMask, kKeptTensors };

struct BatchNormActOp {
  // act(batch_norm(input) [+ residual]), and the statistics it used, in float64. Updates the running ones in training.
  static constexpr const char* schema =
      "batch_norm_act(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, Tensor? weight, Tensor? bias, Tensor? residual, str act, float[] act_args, "
      "bool training, float? momentum, float eps) -> (Tensor output, Tensor save_mean, Tensor save_rstd)";
  using Results = std::tuple<Tensor, Tensor, Tensor>;
  const Tensor& input;
  const OptionalTensor &running_mean, &running_var, &num_batches_tracked, &weight, &bias, &residual;
  std::string_view act;
  at::ArrayRef<double> act_args;
  bool training;
  std::optional<double> momentum;
  double eps;

  using Attributes = BatchNormAttributes;
  static constexpr int kKept = kKeptTensors;
  static constexpr bool drops = false;
  auto differentiable() const { return std::tie(input, weight, bias, residual); }
  auto changed() const { return changed_statistics(*this); }

  ForwardResults forward(bool in_one_block) const {
    check_forward(*this);
    if (input.is_meta()) return {empty_in_kernel_layout(input), Statistics::in_two(input), Tensor()};
    const c10::DeviceGuard guard(input.device());
    return normalize_and_activate(*this, {}, in_one_block);
  }
  static Results as_results(const ForwardResults& r) { return {r.output, r.statistics.mean, r.statistics.rstd}; }
  static ForwardResults from_results(const Results& r) {
    return {std::get<0>(r), {std::get<1>(r), std::get<2>(r), 0}, {}};
  }
  double drop_probability() const { return 0; }

  Results run() const { return as_results(forward(/*in_one_block=*/false)); }
  Results record() const;
  static Tensors differentiate(const Recorded<BatchNormActOp>& node, const Tensors& grads, const Tensors& kept);
  // A residual may come in another dtype than the input: the sum is then of the wider type, as in stock.
  Results cast() const {
    const auto [sum_x, sum_r] = to_wider(input, residual);
    const Tensor x = autocast_for(act, sum_x);
    const OptionalTensor r = autocast_for(act, sum_r);
    return call(BatchNormActOp{x, running_mean, running_var, num_batches_tracked, weight, bias, r, act, act_args,
                               training, momentum, eps});
  }
};

struct BatchNormActDropoutOp {
  // dropout(batch_norm_act(...)), and the two int64 that its mask follows from, as those of dropout.
  static constexpr const char* schema =
      "batch_norm_act_dropout(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, Tensor? weight, Tensor? bias, Tensor? residual, str act, float[] act_args, "
      "bool training, float? momentum, float eps, float p, int? seed) -> (Tensor output, Tensor save_mean, "
      "Tensor save_rstd, Tensor rng_state)";
  static constexpr bool draws = true;
  using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;
  const Tensor& input;
  const OptionalTensor &running_mean, &running_var, &num_batches_tracked, &weight, &bias, &residual;
  std::string_view act;
  at::ArrayRef<double> act_args;
  bool training;
  std::optional<double> momentum;
  double eps, p;
  std::optional<int64_t> seed;

  using Attributes = BatchNormAttributes;
  static constexpr int kKept = kKeptTensors;
  static constexpr bool drops = true;
  auto differentiable() const { return std::tie(input, weight, bias, residual); }
  auto changed() const { return changed_statistics(*this); }

  ForwardResults forward(bool in_one_block) const {
    const DropRate rate = check_dropout(p, "inverted");
    check_forward(*this);
    const Tensor rng_state = new_rng_state(input);
    if (input.is_meta()) return {empty_in_kernel_layout(input), Statistics::in_two(input), rng_state};
    const c10::DeviceGuard guard(input.device());
    if (!input.numel()) rng_state.zero_();
    const MaskSource mask = input.numel() ? draw_mask(rate, seed, rng_state) : MaskSource{};
    ForwardResults results = normalize_and_activate(*this, mask, in_one_block);
    results.rng_state = rng_state;
    return results;
  }
  static Results as_results(const ForwardResults& r) {
    return {r.output, r.statistics.mean, r.statistics.rstd, r.rng_state};
  }
  static ForwardResults from_results(const Results& r) {
    return {std::get<0>(r), {std::get<1>(r), std::get<2>(r), 0}, std::get<3>(r)};
  }
  double drop_probability() const { return p; }

  Results run() const { return as_results(forward(/*in_one_block=*/false)); }
  Results record() const;
  static Tensors differentiate(const Recorded<BatchNormActDropoutOp>& node, const Tensors& grads, const Tensors& kept);
  Results cast() const {
    const auto [sum_x, sum_r] = to_wider(input, residual);
    const Tensor x = autocast_for(act, sum_x);
    const OptionalTensor r = autocast_for(act, sum_r);
    return call(BatchNormActDropoutOp{x, running_mean, running_var, num_batches_tracked, weight, bias, r, act, act_args,
                                      training, momentum, eps, p, seed});
  }
};

// The output of a batch_norm_act or batch_norm_act_dropout that was recorded, once more and bit for bit: from the
// statistics that it used, and what its mask follows from.
struct BatchNormActOutputOp {
  static constexpr const char* schema =
      "batch_norm_act_output(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor save_mean, "
      "Tensor save_rstd, Tensor? rng_state, str act, float[] act_args, float p) -> Tensor";
  using Results = Tensor;
  const Tensor& input;
  const OptionalTensor &weight, &bias, &residual;
  const Tensor &save_mean, &save_rstd;
  const OptionalTensor& rng_state;
  std::string_view act;
  at::ArrayRef<double> act_args;
  double p;

  Tensor run() const {
    check_activation(act, act_args);
    check_floating(input, "batch_norm_act_output", "input");
    check_per_channel(weight, input, "weight");
    check_per_channel(bias, input, "bias");
    if (residual) check_like(*residual, input, "residual", "input");
    check_saved_statistics(input, save_mean, save_rstd);
    const DropRate rate = check_dropout(p, "inverted");
    if (rng_state) check_rng_state(*rng_state, input);
    const Tensor y = empty_in_kernel_layout(input);
    if (y.is_meta() || !y.numel()) return y;
    const c10::DeviceGuard guard(input.device());
    const Tensor x = laid_out_like(input, y), r = optional_laid_out_like(residual, y);
    const Tensor mean = save_mean.contiguous(), rstd = save_rstd.contiguous();
    const Tensor state = rng_state ? rng_state->contiguous() : Tensor();
    BatchNormForward call = forward_of(*this, x, r, y, rng_state ? recorded_mask(rate, state) : MaskSource{});
    call.recorded = true;
    call.mean = mean.mutable_data_ptr<double>();
    call.rstd = rstd.mutable_data_ptr<double>();
    kernels::batch_norm_forward(y.device().type())(call);
    return y;
  }
};

// A forward below autograd. in_one_block: as in normalize_and_activate; only of a plain call.
template <class Op>
ForwardResults forward_below(const Op& a, bool in_one_block) {
  if (!in_one_block) return Op::from_results(call_below(a));
  check_writable_arguments(a);
  const at::AutoDispatchBelowADInplaceOrView below;
  ForwardResults results = a.forward(in_one_block);
  bump_versions(a.changed());
  return results;
}

// Statistics as a node keeps them: two tensors under autocast, else one. So a forward that is run again to the same
// end, as by torch.utils.checkpoint, keeps as many, whatever mode, such as a profiler, is on one of the times.
Statistics as_kept(const Statistics& s) {
  const bool as_they_are = !s.rstd.defined() || !is_plain(s.mean);
  if (as_they_are || at::autocast::is_autocast_enabled(s.mean.device().type())) return s;
  return {at::cat({s.mean, s.rstd}), Tensor(), s.mean.size(0)};
}

// How the output is computed again; null where it is to be kept.
template <class Op>
std::shared_ptr<Recipe> recipe_of_forward(const Op& a, const ForwardResults& results, const Statistics& used) {
  const auto compute = [used, rng_state = or_none(results.rng_state), act = check_activation(a.act, a.act_args),
                        p = a.drop_probability()](const Tensors& sources) {
    const Statistics s = used.split();
    const OptionalTensor weight = or_none(sources[1]), bias = or_none(sources[2]), residual = or_none(sources[3]);
    return call(BatchNormActOutputOp{sources[0], weight, bias, residual, s.mean, s.rstd, rng_state, name_of(act),
                                     arguments_of(act), p});
  };
  return recipe_for(results.output, {a.input, copy_of(a.weight), copy_of(a.bias)}, or_undefined(a.residual), compute);
}

// The same as forward_below, with its gradient recorded.
template <class Op>
ForwardResults record_forward(const Op& a, bool in_one_block) {
  const Gradient<Op> gradient(a);
  const Activation act = check_activation(a.act, a.act_args);
  const ForwardResults results = forward_below(a, in_one_block);
  const Statistics statistics = as_kept(results.statistics);
  gradient->attributes = {act, a.training, a.eps, a.drop_probability()};
  gradient.of(results.output);
  if (Recomputing::active()) gradient->set_recipe(recipe_of_forward(a, results, statistics));
  const bool after_residual = a.residual && !act.is_identity();
  const bool keeps_output = after_residual && (Op::drops ? act.result_shows_mask() : act.keeps_result());
  gradient.keep(kInput, a.input);
  if (a.weight) gradient.keep(kWeight, *a.weight);
  if (a.bias) gradient.keep(kBias, *a.bias);
  if (after_residual && !keeps_output) gradient.keep(kResidual, savable(*a.residual));
  if (keeps_output) gradient.keep_result(kOutput, results.output);
  gradient.keep(kMean, statistics.mean);
  gradient.keep(kRstd, statistics.rstd);
  if (Op::drops) gradient.keep(kMask, results.rng_state);
  return results;
}

template <class Op>
Tensors differentiate_forward(const Recorded<Op>& node, const Tensors& grads, const Tensors& kept) {
  const BatchNormAttributes& a = node.attributes;
  std::array<bool, 4> wanted{node.wants(0), node.wants(1), node.wants(2), node.wants(3)};
  const bool passes_residual = wanted[3] && !Op::drops && a.act.is_identity();
  if (passes_residual) wanted[3] = false;
  const OptionalTensor weight = or_none(kept[kWeight]), bias = or_none(kept[kBias]);
  const OptionalTensor residual = or_none(kept[kResidual]), output = or_none(kept[kOutput]);
  const Tensor& rng_state = kept[kMask];
  const auto backward = [&](const Statistics& s) {
    if constexpr (Op::drops) {
      return BatchNormActDropoutBackwardOp{
          grads[0],       kept[kInput],        weight,     bias,  residual, output, s.mean, s.rstd, rng_state,
          name_of(a.act), arguments_of(a.act), a.training, a.eps, a.p,      wanted};
    } else {
      return BatchNormActBackwardOp{grads[0],   kept[kInput], weight, bias,           residual,
                                    output,     s.mean,       s.rstd, name_of(a.act), arguments_of(a.act),
                                    a.training, a.eps,        wanted};
    }
  };
  const Tensor& rstd = kept[kRstd];
  const Statistics statistics{kept[kMean], rstd, rstd.defined() ? 0 : kept[kInput].size(1)};
  const auto op = backward(statistics);
  Gradients gradients;
  if (records(op) || !is_plain(op)) {
    const Statistics split = statistics.split();
    gradients = call(backward(split));
  } else {
    const at::AutoDispatchBelowADInplaceOrView below;
    const MaskSource mask = Op::drops ? recorded_mask(check_dropout(a.p, "inverted"), rng_state) : MaskSource{};
    gradients = input_gradients(op, statistics.mean_data(), statistics.rstd_data(), mask);
  }
  auto& [dx, dw, db, dr] = gradients;
  return {dx, dw, db, passes_residual ? grads[0] : dr};
}

BatchNormActOp::Results BatchNormActOp::record() const {
  return as_results(record_forward(*this, /*in_one_block=*/false));
}
BatchNormActDropoutOp::Results BatchNormActDropoutOp::record() const {
  return as_results(record_forward(*this, /*in_one_block=*/false));
}
Tensors BatchNormActOp::differentiate(const Recorded<BatchNormActOp>& node, const Tensors& grads, const Tensors& kept) {
  return differentiate_forward(node, grads, kept);
}
Tensors BatchNormActDropoutOp::differentiate(const Recorded<BatchNormActDropoutOp>& node, const Tensors& grads,
                                             const Tensors& kept) {
  return differentiate_forward(node, grads, kept);
}

const Operators<BatchNormActOp, BatchNormActDropoutOp, BatchNormActOutputOp, BatchNormActBackwardOp,
                BatchNormActDropoutBackwardOp>
    operators;

// The output alone.
template <class Op>
Tensor output_of(const Op& a) {
  if (!is_plain(a)) return std::get<0>(dispatch(a));
  return records(a) ? record_forward(a, true).output : forward_below(a, true).output;
}

// batch_norm_act(input, running_mean, running_var, weight, bias, residual, act, act_kwargs, training, momentum, eps,
//                num_batches_tracked, p, seed)
PyObject* python_batch_norm_act(PythonArguments& arguments) {
  const Tensor& input = arguments.tensor();
  const OptionalTensor running_mean = arguments.optional_tensor(), running_var = arguments.optional_tensor();
  const OptionalTensor weight = arguments.optional_tensor(), bias = arguments.optional_tensor();
  const OptionalTensor residual = arguments.optional_tensor();
  const Activation act = arguments.activation();
  const bool training = arguments.flag();
  const std::optional<double> momentum = arguments.optional_number();
  const double eps = arguments.number();
  const OptionalTensor num_batches_tracked = arguments.optional_tensor();
  const double p = arguments.probability();
  const std::optional<int64_t> seed = arguments.seed();
  if (!arguments.fit() || !is_countable(num_batches_tracked, input)) return nullptr;
  return arguments.released([&] {
    if (training && p > 0) {
      return output_of(BatchNormActDropoutOp{input, running_mean, running_var, num_batches_tracked, weight, bias,
                                             residual, name_of(act), arguments_of(act), training, momentum, eps, p,
                                             seed});
    }
    return output_of(BatchNormActOp{input, running_mean, running_var, num_batches_tracked, weight, bias, residual,
                                    name_of(act), arguments_of(act), training, momentum, eps});
  });
}

const PythonFunction functions[] = {PythonFunction::of<python_batch_norm_act>("batch_norm_act")};

}  // namespace
}  // namespace fusedtricks

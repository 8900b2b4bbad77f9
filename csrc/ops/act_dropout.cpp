// dropout(act(x + bias)) + residual: the tail of a layer.
//
// Kept for backward: of relu the output alone, which shows both what was dropped and the derivative; of the identity
// the seed; of others the seed and one tensor, the output where the derivative can be read off it, else the input.
#include "calls/act_dropout.h"

#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>

#include "checks/dropout.h"
#include "ops/autocast.h"
#include "ops/compositions.h"
#include "ops/grad_node.h"
#include "ops/python.h"
#include "ops/random.h"
#include "ops/tensors.h"

namespace fusedtricks {
namespace {

bool is_of_last_dimension(const Tensor& bias) { return bias.dim() == 1; }

// The layout that the kernels work in: the input's, but a bias of the last dimension wants that innermost.
Tensor empty_for_kernels(const Tensor& input, const OptionalTensor& bias) {
  const Tensor like = empty_in_kernel_layout(input);
  const bool fits = like.is_contiguous() || !bias || !is_of_last_dimension(*bias);
  return fits ? like : at::empty_like(input, input.options(), at::MemoryFormat::Contiguous);
}

// The result in the layout that it is promised in: that of the input.
Tensor in_layout_of(const Tensor& input, const Tensor& result) {
  if (input.strides() == result.strides()) return result;
  const Tensor like = empty_in_kernel_layout(input);
  return like.strides() == result.strides() ? result : like.copy_(result);
}

TailLayout tail_of(const Tensor& dense, const OptionalTensor& bias, bool has_mask) {
  const Layout layout = dense.dim() >= 2 ? layout_of(dense) : Layout{1, 1, dense.numel(), false};
  BiasPlaces places;
  if (bias && dense.numel()) {
    const bool innermost = is_of_last_dimension(*bias) || !dense.is_contiguous();
    places = {bias->numel(), innermost ? 1 : layout.positions};
  }
  return {layout, dense.is_contiguous() || !has_mask, places, dense.scalar_type()};
}

// In the type that the kernels compute in; undefined where nothing is to be computed.
Tensor computable(const OptionalTensor& bias, const Tensor& input) {
  if (!bias || !input.numel()) return Tensor();
  const auto type = at::toOpMathType(input.scalar_type());
  return bias->scalar_type() == type && bias->is_contiguous() ? *bias : bias->to(type).contiguous();
}

// Under autocast: a bias of a half type in the input's type, as a linear layer would take it.
OptionalTensor bias_for(const OptionalTensor& bias, const Tensor& input) {
  const bool fits = !bias || !at::isReducedFloatingType(bias->scalar_type());
  return fits ? bias : OptionalTensor(bias->to(input.scalar_type()));
}

struct ActDropoutBackwardOp {
  // The gradients of act_dropout, from input or else from output, without residual. Without rng_state nothing was
  // dropped, or what was shows in output.
  static constexpr const char* schema =
      "act_dropout_backward(Tensor grad_output, Tensor? input, Tensor? output, Tensor? bias, Tensor? rng_state, "
      "str act, float[] act_args, float p, bool[2] output_mask) -> (Tensor grad_input, Tensor grad_bias)";
  using Results = std::tuple<Tensor, Tensor>;
  const Tensor& grad_output;
  const OptionalTensor &input, &output, &bias, &rng_state;
  std::string_view act;
  at::ArrayRef<double> act_args;
  double p;
  std::array<bool, 2> output_mask;

  struct Attributes {
    Activation act;
    double p;
    bool keeps_output;  // else the input, or nothing

    auto values() const { return std::tie(act, p, keeps_output); }
  };
  static constexpr int kKept = 4;
  // The gradients that are read off the output do not depend on the bias.
  auto differentiable() const {
    static const OptionalTensor none;
    return std::tie(grad_output, input, output, output ? none : bias);
  }

  Results run() const;
  Results record() const;
  static Tensors differentiate(const Recorded<ActDropoutBackwardOp>& node, const Tensors& grads, const Tensors& kept);
};

ActDropoutBackwardOp::Results ActDropoutBackwardOp::run() const {
  const Activation activation = check_activation(act, act_args);
  const DropRate rate =
      check_act_dropout_backward(grad_output, input, output, bias, rng_state, activation, p, output_mask);
  if (grad_output.is_meta()) {
    return {output_mask[0] ? empty_in_kernel_layout(grad_output) : Tensor(),
            output_mask[1] ? at::empty_like(*bias, at::MemoryFormat::Contiguous) : Tensor()};
  }
  const c10::DeviceGuard guard(grad_output.device());
  const Tensor dx = empty_for_kernels(grad_output, bias);
  if (!dx.numel() || rate.drops_all() || !(output_mask[0] || output_mask[1])) {
    return {output_mask[0] ? in_layout_of(grad_output, dx.zero_()) : Tensor(),
            output_mask[1] ? at::zeros_like(*bias) : Tensor()};
  }
  const auto type = at::toOpMathType(grad_output.scalar_type());
  const Tensor db = output_mask[1] ? at::empty(bias->sizes(), bias->options().dtype(type)) : Tensor();
  const Tensor dy = laid_out_like(grad_output, dx), b = computable(bias, grad_output);
  const OptionalTensor& saved = input ? input : output;
  const Tensor s = saved ? laid_out_like(*saved, dx) : Tensor(), state = rng_state ? rng_state->contiguous() : Tensor();
  ActDropoutBackward call{.tail = tail_of(dx, bias, state.defined()),
                          .act = activation,
                          .mask = state.defined() ? recorded_mask(rate, state) : no_mask(rate),
                          .kept = input    ? Kept::kInput
                                  : output ? Kept::kResult
                                           : Kept::kNothing,
                          .dy = dy.const_data_ptr(),
                          .saved = data_or_null(s),
                          .bias = data_or_null(b),
                          .dx = output_mask[0] ? dx.data_ptr() : nullptr,
                          .dbias = db.defined() ? db.data_ptr() : nullptr,
                          .workspace = nullptr};
  const auto device = dx.device().type();
  const Tensor memory = workspace(kernels::act_dropout_backward_workspace(device)(call), dx);
  if (memory.defined()) call.workspace = memory.data_ptr();
  kernels::act_dropout_backward(device)(call);
  return {output_mask[0] ? in_layout_of(grad_output, dx) : Tensor(),
          !db.defined() || db.scalar_type() == bias->scalar_type() ? db : db.to(bias->scalar_type())};
}

ActDropoutBackwardOp::Results ActDropoutBackwardOp::record() const {
  const Gradient<ActDropoutBackwardOp> gradient(*this);
  gradient->attributes = {check_activation(act, act_args), p, !input && output};
  const auto [dx, db] = call_below(*this);
  gradient.keep(0, grad_output);
  gradient.keep(1, or_undefined(input ? input : output));
  gradient.keep(2, or_undefined(bias));
  gradient.keep(3, or_undefined(rng_state));
  gradient.of(dx);
  gradient.of(db);
  return {dx, db};
}

// dx = drop(dy) act', dbias its sum; act' at z = input + bias, or read off act(z), which is output / scale.
Tensors ActDropoutBackwardOp::differentiate(const Recorded<ActDropoutBackwardOp>& node, const Tensors& grads,
                                            const Tensors& kept) {
  const auto& [act, p, keeps_output] = node.attributes;
  const double scale = DropRate::make(p, DropMode::kInverted).scale;
  const Tensor &dy = kept[0], &bias = kept[2], &rng_state = kept[3];
  Tensors result(4);
  Tensor g = grads[0];
  if (grads[1].defined()) {
    const Tensor of_bias = grads[1].to(dy.scalar_type());
    g = g.defined() ? g + of_bias : of_bias.expand_as(dy).contiguous();
  }
  const auto drop = [&, p = p](const Tensor& t) {
    if (rng_state.defined()) return call_dropout_backward(t, rng_state, p);
    return p > 0 ? t * scale : t;
  };
  if (!kept[1].defined()) {
    result[0] = drop(g);
    return result;
  }
  const bool reads_result = act.keeps_result();
  Tensor at = kept[1];
  if (keeps_output) {
    at = at / scale;
  } else {
    if (bias.defined()) at = (at + bias).to(dy.scalar_type());
    if (reads_result) at = call_activation(at, act);
  }
  result[0] = drop(call_activation_backward(g, at, act));
  Tensor grad_grad = call_activation_grad_grad(g * drop(dy), at, act);
  if (keeps_output) {
    result[2] = grad_grad / scale;
    return result;
  }
  if (reads_result) grad_grad = call_activation_backward(grad_grad, at, act);
  result[1] = grad_grad;
  if (bias.defined()) result[3] = grad_grad.sum_to_size(bias.sizes()).to(bias.scalar_type());
  return result;
}

// dropout(act(input + bias)) [+ residual]. The two int64 of the mask, or none where p is 0.
struct ActDropoutOp {
  static constexpr const char* schema =
      "act_dropout(Tensor input, Tensor? bias, Tensor? residual, str act, float[] act_args, float p, int? seed) "
      "-> (Tensor output, Tensor rng_state)";
  static constexpr bool draws = true;
  using Results = std::tuple<Tensor, Tensor>;
  const Tensor& input;
  const OptionalTensor &bias, &residual;
  std::string_view act;
  at::ArrayRef<double> act_args;
  double p;
  std::optional<int64_t> seed;

  using Attributes = ActDropoutBackwardOp::Attributes;
  static constexpr int kKept = 3;
  auto differentiable() const { return std::tie(input, bias, residual); }

  Results run() const;
  Results record() const;
  std::shared_ptr<Recipe> recipe(const Tensor& output, const Tensor& rng_state) const;
  static Tensors differentiate(const Recorded<ActDropoutOp>& node, const Tensors& grads, const Tensors& kept);
  // A residual may come in another dtype than the input: the sum is then of the wider type, as in stock.
  Results cast() const {
    const auto [x, r] = to_wider(autocast_for(act, input), residual);
    const OptionalTensor b = bias_for(bias, x);
    return call(ActDropoutOp{x, b, r, act, act_args, p, seed});
  }
};

// Runs the kernel of a forward. drops: whether the mask is one.
template <class Op>
Tensor apply_with(const Op& a, const MaskSource& mask, bool drops) {
  const Tensor y = empty_for_kernels(a.input, a.bias), x = laid_out_like(a.input, y);
  const Tensor r = optional_laid_out_like(a.residual, y), b = computable(a.bias, a.input);
  const ActDropoutForward call{.tail = tail_of(y, a.bias, drops),
                               .act = check_activation(a.act, a.act_args),
                               .mask = mask,
                               .x = x.const_data_ptr(),
                               .bias = data_or_null(b),
                               .residual = data_or_null(r),
                               .y = y.data_ptr()};
  if (drops || y.numel()) kernels::act_dropout_forward(y.device().type())(call);
  return in_layout_of(a.input, y);
}

ActDropoutOp::Results ActDropoutOp::run() const {
  check_activation(act, act_args);
  const DropRate rate = check_act_dropout(input, bias, residual, p);
  const bool drops = !rate.keeps_all();
  const Tensor rng_state = new_rng_state(input, drops ? 2 : 0);
  if (input.is_meta()) return {empty_in_kernel_layout(input), rng_state};
  const c10::DeviceGuard guard(input.device());
  return {apply_with(*this, drops ? draw_mask(rate, seed, rng_state) : no_mask(rate), drops), rng_state};
}

// The output of an act_dropout that was recorded, once more and bit for bit: its mask follows from rng_state.
struct ActDropoutOutputOp {
  static constexpr const char* schema =
      "act_dropout_output(Tensor input, Tensor? bias, Tensor? residual, Tensor rng_state, str act, float[] act_args, "
      "float p) -> Tensor";
  using Results = Tensor;
  const Tensor& input;
  const OptionalTensor &bias, &residual;
  const Tensor& rng_state;
  std::string_view act;
  at::ArrayRef<double> act_args;
  double p;

  Tensor run() const {
    check_activation(act, act_args);
    const DropRate rate = check_act_dropout(input, bias, residual, p);
    const bool drops = !rate.keeps_all();
    if (drops) check_rng_state(rng_state, input);
    if (input.is_meta()) return empty_in_kernel_layout(input);
    const c10::DeviceGuard guard(input.device());
    const Tensor state = rng_state.contiguous();
    return apply_with(*this, drops ? recorded_mask(rate, state) : no_mask(rate), drops);
  }
};

std::shared_ptr<Recipe> ActDropoutOp::recipe(const Tensor& output, const Tensor& rng_state) const {
  const auto compute = [rng_state, activation = check_activation(act, act_args), p = p](const Tensors& sources) {
    const OptionalTensor bias = or_none(sources[1]), residual = or_none(sources[2]);
    return call(
        ActDropoutOutputOp{sources[0], bias, residual, rng_state, name_of(activation), arguments_of(activation), p});
  };
  return recipe_for(output, {input, copy_of(bias)}, or_undefined(residual), compute);
}

ActDropoutOp::Results ActDropoutOp::record() const {
  const Gradient<ActDropoutOp> gradient(*this);
  const Activation activation = check_activation(act, act_args);
  const auto [output, rng_state] = call_below(*this);
  gradient.of(output);
  const bool has_mask = !check_dropout(p, "inverted").keeps_all();
  const bool keeps_output = !residual && (has_mask ? activation.result_survives_scaling() : activation.keeps_result());
  gradient->attributes = {activation, p, keeps_output};
  const bool keeps_input = !activation.is_identity() && !keeps_output;
  if (Recomputing::active() && (keeps_input || recipe_of(input))) gradient->set_recipe(recipe(output, rng_state));
  if (!activation.is_identity()) {
    if (keeps_output)
      gradient.keep_result(0, output);
    else
      gradient.keep(0, savable(input));
  }
  gradient.keep(1, savable(or_undefined(bias)));
  if (has_mask && !(keeps_output && activation.result_shows_mask())) gradient.keep(2, rng_state);
  return {output, rng_state};
}

Tensors ActDropoutOp::differentiate(const Recorded<ActDropoutOp>& node, const Tensors& grads, const Tensors& kept) {
  Tensors result(3);
  const auto& [act, p, keeps_output] = node.attributes;
  const std::array<bool, 2> wanted{node.wants(0), node.wants(1)};
  if (wanted[0] || wanted[1]) {
    const OptionalTensor none, saved = or_none(kept[0]), bias = or_none(kept[1]), rng_state = or_none(kept[2]);
    std::tie(result[0], result[1]) =
        call(ActDropoutBackwardOp{grads[0], keeps_output ? none : saved, keeps_output ? saved : none, bias, rng_state,
                                  name_of(act), arguments_of(act), p, wanted});
  }
  if (node.wants(2)) result[2] = grads[0];
  return result;
}

const Operators<ActDropoutOp, ActDropoutOutputOp, ActDropoutBackwardOp> operators;

// act_dropout(x, bias, residual, act, act_kwargs, p, training, seed)
PyObject* python_act_dropout(PythonArguments& arguments) {
  const Tensor& x = arguments.tensor();
  const OptionalTensor bias = arguments.optional_tensor(), residual = arguments.optional_tensor();
  const Activation act = arguments.activation();
  const double given_p = arguments.probability();
  const double p = arguments.flag() ? given_p : 0;
  const std::optional<int64_t> seed = arguments.seed();
  if (!arguments.fit()) return nullptr;
  return arguments.released(
      [&] { return std::get<0>(call(ActDropoutOp{x, bias, residual, name_of(act), arguments_of(act), p, seed})); });
}

const PythonFunction functions[] = {PythonFunction::of<python_act_dropout>("act_dropout")};

}  // namespace
}  // namespace fusedtricks

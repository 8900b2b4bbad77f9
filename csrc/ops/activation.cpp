// The activations alone: one pass forward, one backward, in memory order whatever the strides. One tensor is kept, the
// result where the derivative can be read off it.
#include "calls/activation.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <c10/core/DeviceGuard.h>

#include "checks/arguments.h"
#include "ops/activation_slope.h"
#include "ops/autocast.h"
#include "ops/compositions.h"
#include "ops/grad_node.h"
#include "ops/gradients.h"
#include "ops/python.h"
#include "ops/tensors.h"

namespace fusedtricks {
namespace {

// t itself where it is dense with model's strides, else a copy that is.
Tensor with_strides_of(const Tensor& t, const Tensor& model) {
  return t.strides() == model.strides() ? t : at::empty_like(model, t.options()).copy_(t);
}

Tensor empty_like_in_any_layout(const Tensor& t) {
  return has_default_strides(t) ? at::empty(t.sizes(), t.options()) : at::empty_like(t);
}

// out = grad * f(kept), by the kernel for it.
template <class Kernel>
Tensor multiply(const Tensor& grad, const Tensor& kept, const Activation& act, const Kernel& kernel) {
  check_floating(kept, "activation_backward", "saved");
  check_like(grad, kept, "grad_output", "saved");
  const Tensor out = empty_like_in_any_layout(kept);
  if (out.is_meta() || !out.numel()) return out;
  const c10::DeviceGuard guard(kept.device());
  const Tensor g = with_strides_of(grad, out), k = with_strides_of(kept, out);
  kernel(out.device().type())({act, out.scalar_type(), out.numel()}, g.const_data_ptr(), k.const_data_ptr(),
                              out.data_ptr());
  return out;
}

// grad * d act' / d saved, for the gradient of activation_backward.
struct ActivationGradGradOp {
  static constexpr const char* schema =
      "activation_grad_grad(Tensor grad, Tensor saved, str act, float[] act_args) -> Tensor";
  using Results = Tensor;
  const Tensor &grad, &saved;
  std::string_view act;
  at::ArrayRef<double> act_args;

  using Attributes = Activation;
  static constexpr int kKept = 2;
  auto differentiable() const { return std::tie(grad, saved); }

  Tensor run() const { return multiply(grad, saved, check_activation(act, act_args), kernels::activation_grad_grad); }
  Tensor record() const {
    const Gradient<ActivationGradGradOp> gradient(*this);
    gradient->attributes = check_activation(act, act_args);
    const Tensor result = call_below(*this);
    gradient.keep(0, grad);
    gradient.keep(1, saved);
    gradient.of(result);
    return result;
  }
  // From here on gradients are those of a composition of differentiable operations.
  static Tensors differentiate(const Recorded<ActivationGradGradOp>& node, const Tensors& grads, const Tensors& kept) {
    const bool create_graph = at::GradMode::is_enabled();
    const at::AutoGradMode recording(true);
    const Tensor g = as_variable(kept[0]), at = as_variable(kept[1]);
    const auto type = at::toOpMathType(at.scalar_type());
    const Tensor slope = activation_slope(node.attributes, at.to(type));
    const Tensor result = gradients_of({slope}, {at}, {g.to(type)}, /*create_graph=*/true)[0];
    return gradients_of({result}, {g, at}, grads, create_graph);
  }
};

// grad_output * act', from what the forward kept: its result where the derivative can be read off it, else its input.
struct ActivationBackwardOp {
  static constexpr const char* schema =
      "activation_backward(Tensor grad_output, Tensor saved, str act, float[] act_args) -> Tensor";
  using Results = Tensor;
  const Tensor &grad_output, &saved;
  std::string_view act;
  at::ArrayRef<double> act_args;

  using Attributes = Activation;
  static constexpr int kKept = 2;
  auto differentiable() const { return std::tie(grad_output, saved); }

  Tensor run() const {
    return multiply(grad_output, saved, check_activation(act, act_args), kernels::activation_backward);
  }
  Tensor record() const {
    const Gradient<ActivationBackwardOp> gradient(*this);
    gradient->attributes = check_activation(act, act_args);
    const Tensor result = call_below(*this);
    gradient.keep(0, grad_output);
    gradient.keep(1, saved);
    gradient.of(result);
    return result;
  }
  static Tensors differentiate(const Recorded<ActivationBackwardOp>& node, const Tensors& grads, const Tensors& kept) {
    const Activation& act = node.attributes;
    const Tensor &g = grads[0], &grad_output = kept[0], &saved = kept[1];
    Tensors result(2);
    if (node.wants(0)) result[0] = call(ActivationBackwardOp{g, saved, name_of(act), arguments_of(act)});
    if (node.wants(1)) {
      result[1] = call(ActivationGradGradOp{g * grad_output, saved, name_of(act), arguments_of(act)});
    }
    return result;
  }
};

// act(input).
struct ActivationOp {
  static constexpr const char* schema = "activation(Tensor input, str act, float[] act_args) -> Tensor";
  using Results = Tensor;
  const Tensor& input;
  std::string_view act;
  at::ArrayRef<double> act_args;

  using Attributes = Activation;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(input); }

  Tensor run() const {
    const Activation activation = check_activation(act, act_args);
    check_floating(input, "activation", "input");
    const Tensor y = empty_like_in_any_layout(input);
    if (y.is_meta() || !y.numel()) return y;
    const c10::DeviceGuard guard(input.device());
    kernels::activation_forward(y.device().type())({activation, y.scalar_type(), y.numel()},
                                                   with_strides_of(input, y).const_data_ptr(), y.data_ptr());
    return y;
  }
  Tensor cast() const { return call(ActivationOp{autocast_for(act, input), act, act_args}); }
  Tensor record() const {
    const Gradient<ActivationOp> gradient(*this);
    const Activation activation = gradient->attributes = check_activation(act, act_args);
    const Tensor result = call_below(*this);
    gradient.of(result);
    // The input is kept anyway, or can be recomputed itself.
    const bool is_free = Recomputing::active() && (!activation.keeps_result() || recipe_of(input));
    if (is_free) gradient->set_recipe(recipe(result, activation));
    if (activation.keeps_result())
      gradient.keep_result(0, result);
    else
      gradient.keep(0, input);
    return result;
  }
  std::shared_ptr<Recipe> recipe(const Tensor& result, const Activation& activation) const {
    return recipe_for(result, {input}, /*residual=*/{}, [activation](const Tensors& sources) {
      return call(ActivationOp{sources[0], name_of(activation), arguments_of(activation)});
    });
  }
  static Tensors differentiate(const Recorded<ActivationOp>& node, const Tensors& grads, const Tensors& kept) {
    return {call(ActivationBackwardOp{grads[0], kept[0], name_of(node.attributes), arguments_of(node.attributes)})};
  }
};

// The same, written over input. An activation that keeps its input keeps a copy of it, as stock's do in place.
struct ActivationInPlaceOp {
  static constexpr const char* schema = "activation_(Tensor(a!) input, str act, float[] act_args) -> ()";
  static constexpr bool inplace = true;
  using Results = void;
  const Tensor& input;
  std::string_view act;
  at::ArrayRef<double> act_args;

  using Attributes = Activation;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(input); }
  auto changed() const { return std::tie(input); }

  void run() const {
    const Activation activation = check_activation(act, act_args);
    check_floating(input, "activation", "input");
    if (input.is_meta()) return;
    at::assert_no_internal_overlap(input);
    if (!input.numel()) return;
    const c10::DeviceGuard guard(input.device());
    const bool dense = input.is_non_overlapping_and_dense();
    const Tensor y = dense ? input : at::empty_like(input).copy_(input);
    kernels::activation_forward(y.device().type())({activation, y.scalar_type(), y.numel()}, y.const_data_ptr(),
                                                   y.data_ptr());
    if (!dense) input.copy_(y);
  }
  void record() const {
    const Gradient<ActivationInPlaceOp> gradient(*this);
    const Activation activation = gradient->attributes = check_activation(act, act_args);
    const bool keeps_result = activation.keeps_result();
    if (!keeps_result) gradient.keep(0, input.clone());
    call_below(*this);
    gradient.of_changed(input);
    if (keeps_result) gradient.keep_result(0, input, input.is_view());
  }
  static Tensors differentiate(const Recorded<ActivationInPlaceOp>& node, const Tensors& grads, const Tensors& kept) {
    return {call(ActivationBackwardOp{grads[0], kept[0], name_of(node.attributes), arguments_of(node.attributes)})};
  }
};

const Operators<ActivationOp, ActivationInPlaceOp, ActivationBackwardOp, ActivationGradGradOp> operators;

// activation(input, act, inplace, *act_args)
PyObject* python_activation(PythonArguments& arguments) {
  const Tensor& input = arguments.tensor();
  const std::string_view name = arguments.text();
  const bool inplace = arguments.flag();
  const Activation act = arguments.activation_of(name);
  if (!arguments.fit()) return nullptr;
  if (!inplace) {
    return arguments.released([&] { return call(ActivationOp{input, name_of(act), arguments_of(act)}); });
  }
  arguments.released([&] { call(ActivationInPlaceOp{input, name_of(act), arguments_of(act)}); });
  return arguments.same(0);
}

const PythonFunction functions[] = {PythonFunction::of<python_activation>("activation")};

}  // namespace

Tensor call_activation(const Tensor& input, const Activation& act) {
  return call(ActivationOp{input, name_of(act), arguments_of(act)});
}

Tensor call_activation_backward(const Tensor& grad_output, const Tensor& saved, const Activation& act) {
  return call(ActivationBackwardOp{grad_output, saved, name_of(act), arguments_of(act)});
}

Tensor call_activation_grad_grad(const Tensor& grad, const Tensor& saved, const Activation& act) {
  return call(ActivationGradGradOp{grad, saved, name_of(act), arguments_of(act)});
}

}  // namespace fusedtricks

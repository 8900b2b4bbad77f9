// Dropout of single elements, inverted, classic or alpha. Nothing of the tensor's size is kept: the mask follows from
// seed and offset.
#include "calls/dropout.h"

#include <ATen/MemoryOverlap.h>
#include <c10/core/DeviceGuard.h>

#include "checks/arguments.h"
#include "ops/compositions.h"
#include "ops/grad_node.h"
#include "ops/python.h"
#include "ops/random.h"
#include "ops/tensors.h"

namespace fusedtricks {
namespace {

// y = x dropped; both dense and laid out alike.
void drop(const Tensor& x, const Tensor& y, const MaskSource& mask) {
  // Other strides than the default occur from three dimensions on, with the channels innermost.
  const Layout layout = y.dim() >= 2 ? layout_of(y) : Layout{1, 1, y.numel(), false};
  kernels::dropout(y.device().type())(
      {layout, y.is_contiguous(), y.scalar_type(), mask, x.const_data_ptr(), y.data_ptr()});
}

// What the gradient of every form needs.
struct DropoutAttributes {
  double p;
  DropMode mode;

  auto values() const { return std::tie(p, mode); }
};

// grad_output * the same mask. (The schemas say "scaling": torch's functionalisation has a parameter "mode" of its
// own.)
struct DropoutBackwardOp {
  static constexpr const char* schema =
      "dropout_backward(Tensor grad_output, Tensor rng_state, float p, str scaling) -> Tensor";
  using Results = Tensor;
  const Tensor &grad_output, &rng_state;
  double p;
  std::string_view mode;

  using Attributes = DropoutAttributes;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(grad_output); }

  Tensor run() const {
    check_floating(grad_output, "dropout_backward", "grad_output");
    const DropRate rate = check_dropout(p, mode);
    check_rng_state(rng_state, grad_output);
    const Tensor dx = empty_in_kernel_layout(grad_output);
    if (dx.is_meta() || !dx.numel()) return dx;
    const c10::DeviceGuard guard(grad_output.device());
    const Tensor dy = laid_out_like(grad_output, dx), state = rng_state.contiguous();
    drop(dy, dx, recorded_mask(rate.linear(), state));
    return dx;
  }
  Tensor record() const;
  static Tensors differentiate(const Recorded<DropoutBackwardOp>& node, const Tensors& grads, const Tensors& kept);
};

// Linear in its input: the gradient of the gradient is the same call.
template <class Op>
Tensors gradient_of(const Recorded<Op>& node, const Tensors& grads, const Tensors& kept) {
  const auto& [p, mode] = node.attributes;
  return {call(DropoutBackwardOp{grads[0], kept[0], p, name_of(mode)})};
}

Tensor DropoutBackwardOp::record() const {
  const Gradient<DropoutBackwardOp> gradient(*this);
  gradient->attributes = {p, check_drop_mode(mode)};
  const Tensor result = call_below(*this);
  gradient.keep(0, rng_state);
  gradient.of(result);
  return result;
}

Tensors DropoutBackwardOp::differentiate(const Recorded<DropoutBackwardOp>& node, const Tensors& grads,
                                         const Tensors& kept) {
  return gradient_of(node, grads, kept);
}

// The output of a dropout that was recorded, once more and bit for bit: its mask follows from rng_state.
struct DropoutOutputOp {
  static constexpr const char* schema =
      "dropout_output(Tensor input, Tensor rng_state, float p, str scaling) -> Tensor";
  using Results = Tensor;
  const Tensor &input, &rng_state;
  double p;
  std::string_view mode;

  Tensor run() const {
    check_floating(input, "dropout_output", "input");
    const DropRate rate = check_dropout(p, mode);
    check_rng_state(rng_state, input);
    const Tensor y = empty_in_kernel_layout(input);
    if (y.is_meta() || !y.numel()) return y;
    const c10::DeviceGuard guard(input.device());
    const Tensor state = rng_state.contiguous();
    drop(laid_out_like(input, y), y, recorded_mask(rate, state));
    return y;
  }
};

// Where kept input [/ (1 - p)], else 0; or alpha dropout. And the two int64 that the mask follows from: seed and
// offset.
struct DropoutOp {
  static constexpr const char* schema =
      "dropout(Tensor input, float p, str scaling, int? seed) -> (Tensor output, Tensor rng_state)";
  static constexpr bool draws = true;
  using Results = std::tuple<Tensor, Tensor>;
  const Tensor& input;
  double p;
  std::string_view mode;
  std::optional<int64_t> seed;

  using Attributes = DropoutAttributes;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(input); }

  Results run() const {
    check_floating(input, "dropout", "input");
    const DropRate rate = check_dropout(p, mode);
    const Tensor y = empty_in_kernel_layout(input), rng_state = new_rng_state(input);
    if (y.is_meta()) return {y, rng_state};
    const c10::DeviceGuard guard(input.device());
    drop(laid_out_like(input, y), y, draw_mask(rate, seed, rng_state));
    return {y, rng_state};
  }
  Results record() const {
    const Gradient<DropoutOp> gradient(*this);
    gradient->attributes = {p, check_drop_mode(mode)};
    const auto [output, rng_state] = call_below(*this);
    gradient.keep(0, rng_state);
    gradient.of(output);
    if (Recomputing::active() && recipe_of(input)) gradient->set_recipe(recipe(output, rng_state));
    return {output, rng_state};
  }
  std::shared_ptr<Recipe> recipe(const Tensor& output, const Tensor& state) const {
    return recipe_for(output, {input}, /*residual=*/{},
                      [state, p = p, mode = check_drop_mode(mode)](const Tensors& sources) {
                        return call(DropoutOutputOp{sources[0], state, p, name_of(mode)});
                      });
  }
  static Tensors differentiate(const Recorded<DropoutOp>& node, const Tensors& grads, const Tensors& kept) {
    return gradient_of(node, grads, kept);
  }
};

// The same, written over input.
struct DropoutInPlaceOp {
  static constexpr const char* schema = "dropout_(Tensor(a!) input, float p, str scaling, int? seed) -> Tensor";
  static constexpr bool draws = true, inplace = true;
  using Results = Tensor;
  const Tensor& input;
  double p;
  std::string_view mode;
  std::optional<int64_t> seed;

  using Attributes = DropoutAttributes;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(input); }
  auto changed() const { return std::tie(input); }

  Tensor run() const {
    check_floating(input, "dropout", "input");
    const DropRate rate = check_dropout(p, mode);
    const Tensor rng_state = new_rng_state(input);
    if (input.is_meta()) return rng_state;
    at::assert_no_internal_overlap(input);
    const c10::DeviceGuard guard(input.device());
    const bool as_it_is = is_kernel_layout(input);
    const Tensor y = as_it_is ? input : input.contiguous();
    drop(y, y, draw_mask(rate, seed, rng_state));
    if (!as_it_is) input.copy_(y);
    return rng_state;
  }
  Tensor record() const {
    const Gradient<DropoutInPlaceOp> gradient(*this);
    gradient->attributes = {p, check_drop_mode(mode)};
    const Tensor rng_state = call_below(*this);
    gradient.keep(0, rng_state);
    gradient.of_changed(input);
    return rng_state;
  }
  static Tensors differentiate(const Recorded<DropoutInPlaceOp>& node, const Tensors& grads, const Tensors& kept) {
    return gradient_of(node, grads, kept);
  }
};

const Operators<DropoutOp, DropoutInPlaceOp, DropoutOutputOp, DropoutBackwardOp> operators;

// dropout(input, p, mode, seed, inplace)
PyObject* python_dropout(PythonArguments& arguments) {
  const Tensor& input = arguments.tensor();
  const double p = arguments.probability();
  const std::string_view mode = arguments.text();
  const std::optional<int64_t> seed = arguments.seed();
  const bool inplace = arguments.flag();
  if (!arguments.fit()) return nullptr;
  if (p == 0) return arguments.same(0);
  if (!inplace) return arguments.released([&] { return std::get<0>(call(DropoutOp{input, p, mode, seed})); });
  arguments.released([&] { (void)call(DropoutInPlaceOp{input, p, mode, seed}); });
  return arguments.same(0);
}

const PythonFunction functions[] = {PythonFunction::of<python_dropout>("dropout")};

}  // namespace

std::tuple<Tensor, Tensor> call_dropout(const Tensor& input, double p, std::optional<int64_t> seed) {
  return call(DropoutOp{input, p, "inverted", seed});
}

Tensor call_dropout_backward(const Tensor& grad_output, const Tensor& rng_state, double p) {
  return call(DropoutBackwardOp{grad_output, rng_state, p, "inverted"});
}

}  // namespace fusedtricks

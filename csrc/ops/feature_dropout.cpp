// Dropout with one mask value for each index of the first dimensions: whole channels, samples or batches. A seed is
// kept; the residual's gradient is grad_output itself.
#include "calls/feature_dropout.h"

#include <ATen/MemoryOverlap.h>
#include <c10/core/DeviceGuard.h>

#include "checks/dropout.h"
#include "ops/grad_node.h"
#include "ops/python.h"
#include "ops/random.h"
#include "ops/tensors.h"

namespace fusedtricks {
namespace {

// Of a dense tensor in kernel layout, with a word for each index of its first mask_dims dimensions.
MaskGroups groups_of(const Tensor& t, int64_t mask_dims) {
  if (!t.numel()) return {1, 1};
  if (mask_dims == 2 && !t.is_contiguous()) {
    const Layout layout = layout_of(t);
    return {layout.channels * layout.positions, layout.channels};
  }
  int64_t elements = 1;
  for (int64_t d = mask_dims; d < t.dim(); ++d) elements *= t.size(d);
  return {elements, 1};
}

// y = x dropped [+ residual]; all dense and laid out alike.
void drop(const Tensor& x, const Tensor& residual, const Tensor& y, int64_t mask_dims, const MaskSource& mask) {
  kernels::feature_dropout(y.device().type())({groups_of(y, mask_dims), y.numel(), y.scalar_type(), mask,
                                               x.const_data_ptr(), data_or_null(residual), y.data_ptr()});
}

struct FeatureDropoutAttributes {
  int64_t mask_dims;
  double p;
  DropMode mode;

  auto values() const { return std::tie(mask_dims, p, mode); }
};

// grad_output * the same mask.
struct FeatureDropoutBackwardOp {
  static constexpr const char* schema =
      "feature_dropout_backward(Tensor grad_output, Tensor rng_state, int mask_dims, float p, str scaling) -> Tensor";
  using Results = Tensor;
  const Tensor &grad_output, &rng_state;
  int64_t mask_dims;
  double p;
  std::string_view mode;

  using Attributes = FeatureDropoutAttributes;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(grad_output); }

  Tensor run() const {
    const DropRate rate = check_feature_dropout(grad_output, std::nullopt, mask_dims, p, mode);
    check_rng_state(rng_state, grad_output);
    const Tensor dx = empty_in_kernel_layout(grad_output);
    if (dx.is_meta() || !dx.numel()) return dx;
    const c10::DeviceGuard guard(grad_output.device());
    const Tensor dy = laid_out_like(grad_output, dx), state = rng_state.contiguous();
    drop(dy, Tensor(), dx, mask_dims, recorded_mask(rate.linear(), state));
    return dx;
  }
  Tensor record() const;
  static Tensors differentiate(const Recorded<FeatureDropoutBackwardOp>& node, const Tensors& grads,
                               const Tensors& kept);
};

// Linear in its input: the gradient of the gradient is the same call.
template <class Op>
Tensor gradient_of(const Recorded<Op>& node, const Tensors& grads, const Tensors& kept) {
  const auto& [mask_dims, p, mode] = node.attributes;
  return call(FeatureDropoutBackwardOp{grads[0], kept[0], mask_dims, p, name_of(mode)});
}

Tensor FeatureDropoutBackwardOp::record() const {
  const Gradient<FeatureDropoutBackwardOp> gradient(*this);
  gradient->attributes = {mask_dims, p, check_drop_mode(mode)};
  const Tensor result = call_below(*this);
  gradient.keep(0, rng_state);
  gradient.of(result);
  return result;
}

Tensors FeatureDropoutBackwardOp::differentiate(const Recorded<FeatureDropoutBackwardOp>& node, const Tensors& grads,
                                                const Tensors& kept) {
  return {gradient_of(node, grads, kept)};
}

// The output of a feature_dropout that was recorded, once more and bit for bit: its mask follows from rng_state.
struct FeatureDropoutOutputOp {
  static constexpr const char* schema =
      "feature_dropout_output(Tensor input, Tensor? residual, Tensor rng_state, int mask_dims, float p, str scaling) "
      "-> Tensor";
  using Results = Tensor;
  const Tensor& input;
  const OptionalTensor& residual;
  const Tensor& rng_state;
  int64_t mask_dims;
  double p;
  std::string_view mode;

  Tensor run() const {
    const DropRate rate = check_feature_dropout(input, residual, mask_dims, p, mode);
    check_rng_state(rng_state, input);
    const Tensor y = empty_in_kernel_layout(input);
    if (y.is_meta() || !y.numel()) return y;
    const c10::DeviceGuard guard(input.device());
    const Tensor x = laid_out_like(input, y), r = optional_laid_out_like(residual, y);
    const Tensor state = rng_state.contiguous();
    drop(x, r, y, mask_dims, recorded_mask(rate, state));
    return y;
  }
};

// The same as dropout with one mask value for each index of the first mask_dims dimensions, [+ residual].
struct FeatureDropoutOp {
  static constexpr const char* schema =
      "feature_dropout(Tensor input, Tensor? residual, int mask_dims, float p, str scaling, int? seed) "
      "-> (Tensor output, Tensor rng_state)";
  static constexpr bool draws = true;
  using Results = std::tuple<Tensor, Tensor>;
  const Tensor& input;
  const OptionalTensor& residual;
  int64_t mask_dims;
  double p;
  std::string_view mode;
  std::optional<int64_t> seed;

  using Attributes = FeatureDropoutAttributes;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(input, residual); }

  Results run() const {
    const DropRate rate = check_feature_dropout(input, residual, mask_dims, p, mode);
    const Tensor y = empty_in_kernel_layout(input), rng_state = new_rng_state(input);
    if (y.is_meta()) return {y, rng_state};
    const c10::DeviceGuard guard(input.device());
    const Tensor x = laid_out_like(input, y), r = optional_laid_out_like(residual, y);
    drop(x, r, y, mask_dims, draw_mask(rate, seed, rng_state));
    return {y, rng_state};
  }
  Results record() const {
    const Gradient<FeatureDropoutOp> gradient(*this);
    gradient->attributes = {mask_dims, p, check_drop_mode(mode)};
    const auto [output, rng_state] = call_below(*this);
    gradient.keep(0, rng_state);
    gradient.of(output);
    if (Recomputing::active() && recipe_of(input)) gradient->set_recipe(recipe(output, rng_state));
    return {output, rng_state};
  }
  std::shared_ptr<Recipe> recipe(const Tensor& output, const Tensor& state) const {
    const auto compute = [state, mask_dims = mask_dims, p = p, mode = check_drop_mode(mode)](const Tensors& sources) {
      const OptionalTensor residual = or_none(sources[1]);
      return call(FeatureDropoutOutputOp{sources[0], residual, state, mask_dims, p, name_of(mode)});
    };
    return recipe_for(output, {input}, or_undefined(residual), compute);
  }
  static Tensors differentiate(const Recorded<FeatureDropoutOp>& node, const Tensors& grads, const Tensors& kept) {
    return {node.wants(0) ? gradient_of(node, grads, kept) : Tensor(), node.wants(1) ? grads[0] : Tensor()};
  }
  // A residual may come in another dtype than the input: the sum is then of the wider type, as in stock.
  Results cast() const {
    const auto [x, r] = to_wider(input, residual);
    return call(FeatureDropoutOp{x, r, mask_dims, p, mode, seed});
  }
};

// The same, written over input.
struct FeatureDropoutInPlaceOp {
  static constexpr const char* schema =
      "feature_dropout_(Tensor(a!) input, int mask_dims, float p, str scaling, int? seed) -> Tensor";
  static constexpr bool draws = true, inplace = true;
  using Results = Tensor;
  const Tensor& input;
  int64_t mask_dims;
  double p;
  std::string_view mode;
  std::optional<int64_t> seed;

  using Attributes = FeatureDropoutAttributes;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(input); }
  auto changed() const { return std::tie(input); }

  Tensor run() const {
    const DropRate rate = check_feature_dropout(input, std::nullopt, mask_dims, p, mode);
    const Tensor rng_state = new_rng_state(input);
    if (input.is_meta()) return rng_state;
    at::assert_no_internal_overlap(input);
    const c10::DeviceGuard guard(input.device());
    const bool as_it_is = is_kernel_layout(input);
    const Tensor y = as_it_is ? input : input.contiguous();
    drop(y, Tensor(), y, mask_dims, draw_mask(rate, seed, rng_state));
    if (!as_it_is) input.copy_(y);
    return rng_state;
  }
  Tensor record() const {
    const Gradient<FeatureDropoutInPlaceOp> gradient(*this);
    gradient->attributes = {mask_dims, p, check_drop_mode(mode)};
    const Tensor rng_state = call_below(*this);
    gradient.keep(0, rng_state);
    gradient.of_changed(input);
    return rng_state;
  }
  static Tensors differentiate(const Recorded<FeatureDropoutInPlaceOp>& node, const Tensors& grads,
                               const Tensors& kept) {
    return {gradient_of(node, grads, kept)};
  }
};

const Operators<FeatureDropoutOp, FeatureDropoutInPlaceOp, FeatureDropoutOutputOp, FeatureDropoutBackwardOp> operators;

// feature_dropout(input, residual, mask_dims, p, mode, seed, inplace)
PyObject* python_feature_dropout(PythonArguments& arguments) {
  const Tensor& input = arguments.tensor();
  const OptionalTensor residual = arguments.optional_tensor();
  const int64_t mask_dims = arguments.integer();
  const double p = arguments.probability();
  const std::string_view mode = arguments.text();
  const std::optional<int64_t> seed = arguments.seed();
  const bool inplace = arguments.flag();
  if (!arguments.fit()) return nullptr;
  if (p == 0 && !residual) return arguments.same(0);
  if (!inplace) {
    return arguments.released(
        [&] { return std::get<0>(call(FeatureDropoutOp{input, residual, mask_dims, p, mode, seed})); });
  }
  arguments.released([&] { (void)call(FeatureDropoutInPlaceOp{input, mask_dims, p, mode, seed}); });
  return arguments.same(0);
}

const PythonFunction functions[] = {PythonFunction::of<python_feature_dropout>("feature_dropout")};

}  // namespace
}  // namespace fusedtricks

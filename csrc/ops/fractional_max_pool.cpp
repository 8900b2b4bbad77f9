// act(fractional_max_pool(input)), with the activation after the pooling.
//
// Kept for backward are the place of each window's maximum, what the windows follow from (a seed, or the samples), and
// the result where the activation's derivative is read off it.
#include "calls/fractional_max_pool.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include "checks/fractional_max_pool.h"
#include "ops/autocast.h"
#include "ops/compositions.h"
#include "ops/grad_node.h"
#include "ops/python.h"
#include "ops/random.h"
#include "ops/tensors.h"

namespace fusedtricks {
namespace {

// The pooled dimensions in the last places, those before them of length 1.
void set_sizes(int64_t (&sizes)[kDimensions], at::IntArrayRef pooled) {
  for (int d = 0; d < kDimensions; ++d) {
    const int given = d - (kDimensions - int(pooled.size()));
    sizes[d] = given < 0 ? 1 : pooled[given];
  }
}

// What the kernels are given; holds the memory that the call points to.
class Pooling {
 public:
  // model: a tensor of that batch and those channels, on the device.
  Pooling(const Tensor& model, at::IntArrayRef input, at::IntArrayRef output, at::IntArrayRef kernel,
          const OptionalTensor& samples, bool channels_last)
      : device_(model.device().type()), options_(model.options()) {
    if (samples) samples_ = samples->contiguous();
    PoolShape& shape = call_.shape;
    shape.rank = int(kernel.size());
    shape.batch = model.size(0);
    shape.channels = model.size(1);
    set_sizes(shape.input, input);
    set_sizes(shape.output, output);
    set_sizes(shape.kernel, kernel);
    shape.channels_last = channels_last;
  }

  const PoolCall& call(c10::ScalarType dtype, const Activation& act, const MaskSource& random, bool gradient) {
    const int64_t bytes = kernels::fractional_max_pool_workspace(device_)(call_.shape, gradient);
    if (bytes) workspace_ = at::empty({bytes}, options_.dtype(at::kByte));
    call_.samples = {nullptr, dtype};
    if (samples_.defined()) call_.samples = {samples_.const_data_ptr(), samples_.scalar_type()};
    call_.dtype = dtype;
    call_.act = act;
    call_.random = random;
    call_.workspace = bytes ? workspace_.data_ptr() : nullptr;
    return call_;
  }
  c10::DeviceType device() const { return device_; }

 private:
  c10::DeviceType device_;
  at::TensorOptions options_;
  Tensor samples_, workspace_;
  PoolCall call_{};
};

bool is_channels_last(at::MemoryFormat format) { return format != at::MemoryFormat::Contiguous; }

// The position in its plane of each maximum, as stock's indices.
struct FractionalMaxPoolIndicesOp {
  static constexpr const char* schema =
      "fractional_max_pool_indices(Tensor argmax, Tensor? samples, Tensor rng_state, SymInt[] input_size, "
      "int[] kernel_size) -> Tensor";
  using Results = Tensor;
  const Tensor& argmax;
  const OptionalTensor& samples;
  const Tensor& rng_state;
  c10::SymIntArrayRef input_size;
  at::IntArrayRef kernel_size;

  Tensor run() const {
    check_pool_kept(argmax, samples, rng_state, input_size, kernel_size);
    const at::MemoryFormat format = pool_format(argmax);
    const Tensor indices = at::empty_symint(argmax.sym_sizes(), argmax.options().dtype(at::kLong), format);
    if (argmax.is_meta()) return indices;
    const c10::DeviceGuard guard(argmax.device());
    const Tensor places = argmax.contiguous(format), state = rng_state.contiguous();
    Pooling pooling(places, C10_AS_INTARRAYREF_SLOW(input_size), places.sizes().slice(2), kernel_size, samples,
                    is_channels_last(format));
    kernels::fractional_max_pool_indices(pooling.device())(
        pooling.call(places.scalar_type(), Activation{}, recorded_mask({}, state), false), places.const_data_ptr(),
        indices.data_ptr<int64_t>());
    return indices;
  }
};

enum Kept { kOutput, kArgmax, kSamples, kRngState, kGradOutput };

struct PoolAttributes {
  std::vector<c10::SymInt> input_size;
  std::vector<int64_t> kernel_size;
  bool channels_last = false;
  Activation act{};

  auto values() const { return std::tie(input_size, kernel_size, channels_last, act); }
};

// The gradient of input, whose pooled dimensions are input_size. output is not needed for the identity.
struct FractionalMaxPoolBackwardOp {
  static constexpr const char* schema =
      "fractional_max_pool_backward(Tensor grad_output, Tensor? output, Tensor argmax, Tensor? samples, "
      "Tensor rng_state, SymInt[] input_size, int[] kernel_size, bool channels_last, str act, float[] act_args) -> "
      "Tensor";
  using Results = Tensor;
  const Tensor& grad_output;
  const OptionalTensor& output;
  const Tensor& argmax;
  const OptionalTensor& samples;
  const Tensor& rng_state;
  c10::SymIntArrayRef input_size;
  at::IntArrayRef kernel_size;
  bool channels_last;
  std::string_view act;
  at::ArrayRef<double> act_args;

  using Attributes = PoolAttributes;
  static constexpr int kKept = kGradOutput + 1;
  auto differentiable() const { return std::tie(grad_output, output); }

  Tensor run() const;
  Tensor record() const;
  static Tensors differentiate(const Recorded<FractionalMaxPoolBackwardOp>& node, const Tensors& grads,
                               const Tensors& kept);
};

Tensor FractionalMaxPoolBackwardOp::run() const {
  const Activation activation = check_monotone(act, act_args);
  check_pool_kept(argmax, samples, rng_state, input_size, kernel_size);
  check_pool_backward(grad_output, output, argmax, activation);
  const at::MemoryFormat format = pool_format(channels_last, argmax.dim());
  const Tensor dx = at::empty_symint(with_batch_and_channels(argmax, input_size), grad_output.options(), format);
  if (dx.is_meta()) return dx;
  const c10::DeviceGuard guard(grad_output.device());
  const Tensor dy = grad_output.contiguous(format), places = argmax.contiguous(format), state = rng_state.contiguous();
  const Tensor y = activation.is_identity() ? Tensor() : output->contiguous(format);
  Pooling pooling(dy, C10_AS_INTARRAYREF_SLOW(input_size), dy.sizes().slice(2), kernel_size, samples, channels_last);
  kernels::fractional_max_pool_backward(pooling.device())(
      pooling.call(dy.scalar_type(), activation, recorded_mask({}, state), true), dy.const_data_ptr(), data_or_null(y),
      places.const_data_ptr(), dx.data_ptr());
  return dx;
}

Tensor FractionalMaxPoolBackwardOp::record() const {
  const Gradient<FractionalMaxPoolBackwardOp> gradient(*this);
  gradient->attributes = {input_size.vec(), kernel_size.vec(), channels_last, check_activation(act, act_args)};
  const Tensor result = call_below(*this);
  gradient.keep(kOutput, or_undefined(output));
  gradient.keep(kArgmax, argmax);
  gradient.keep(kSamples, or_undefined(samples));
  gradient.keep(kRngState, rng_state);
  gradient.keep(kGradOutput, grad_output);
  gradient.of(result);
  return result;
}

// From the gradient of the backward's result to those of what it took: what lies at each window's maximum, times the
// activation's derivative, and times grad_output and the derivative of that.
Tensors FractionalMaxPoolBackwardOp::differentiate(const Recorded<FractionalMaxPoolBackwardOp>& node,
                                                   const Tensors& grads, const Tensors& kept) {
  const auto& [input_size, kernel_size, channels_last, act] = node.attributes;
  const Tensor &y = kept[kOutput], &dy = kept[kGradOutput];
  const OptionalTensor samples = or_none(kept[kSamples]);
  const Tensor indices =
      call(FractionalMaxPoolIndicesOp{kept[kArgmax], samples, kept[kRngState], input_size, kernel_size});
  const Tensor at_maxima =
      positions_in_one(grads[0]).gather(2, positions_in_one(indices)).view_symint(indices.sym_sizes());
  Tensors out(2);
  if (!y.defined()) {
    out[0] = at_maxima;
    return out;
  }
  if (node.wants(0)) out[0] = call_activation_backward(at_maxima, y, act);
  if (node.wants(1)) out[1] = call_activation_grad_grad(at_maxima * dy, y, act);
  return out;
}

// act(fractional_max_pool(input)) over the 2 or 3 dimensions of kernel_size, where in its window each maximum is (one
// byte, two or four), and what the windows follow from where no samples say: seed and offset.
struct FractionalMaxPoolOp {
  static constexpr const char* schema =
      "fractional_max_pool(Tensor input, int[] kernel_size, SymInt[] output_size, Tensor? samples, int? seed, str act, "
      "float[] act_args) -> (Tensor output, Tensor argmax, Tensor rng_state)";
  static constexpr bool draws = true;
  using Results = std::tuple<Tensor, Tensor, Tensor>;
  const Tensor& input;
  at::IntArrayRef kernel_size;
  c10::SymIntArrayRef output_size;
  const OptionalTensor& samples;
  std::optional<int64_t> seed;
  std::string_view act;
  at::ArrayRef<double> act_args;

  using Attributes = PoolAttributes;
  static constexpr int kKept = kRngState + 1;
  auto differentiable() const { return std::tie(input); }

  Results run() const;
  Results record() const;
  Results cast() const {
    const Tensor x = autocast_for(act, autocast_for("fractional_max_pool", input));
    const OptionalTensor s = autocast_for(act, autocast_for("fractional_max_pool", samples));
    return call(FractionalMaxPoolOp{x, kernel_size, output_size, s, seed, act, act_args});
  }
  static Tensors differentiate(const Recorded<FractionalMaxPoolOp>& node, const Tensors& grads, const Tensors& kept);
};

FractionalMaxPoolOp::Results FractionalMaxPoolOp::run() const {
  const Activation activation = check_monotone(act, act_args);
  check_fractional_max_pool(input, kernel_size, output_size, samples);
  const at::MemoryFormat format = pool_format(input);
  const auto shape = with_batch_and_channels(input, output_size);
  const Tensor y = at::empty_symint(shape, input.options(), format);
  const Tensor argmax = at::empty_symint(shape, input.options().dtype(place_dtype(kernel_size)), format);
  const Tensor rng_state = new_rng_state(input);
  if (y.is_meta()) return {y, argmax, rng_state};
  const c10::DeviceGuard guard(input.device());
  const Tensor x = input.contiguous(format);
  Pooling pooling(x, x.sizes().slice(2), C10_AS_INTARRAYREF_SLOW(output_size), kernel_size, samples,
                  is_channels_last(format));
  const auto known_seed = samples ? std::optional<int64_t>(0) : seed;
  kernels::fractional_max_pool_forward(pooling.device())(
      pooling.call(x.scalar_type(), activation, draw_mask({}, known_seed, rng_state), false), x.const_data_ptr(),
      y.data_ptr(), argmax.data_ptr());
  return {y, argmax, rng_state};
}

FractionalMaxPoolOp::Results FractionalMaxPoolOp::record() const {
  const Gradient<FractionalMaxPoolOp> gradient(*this);
  const Activation activation = check_activation(act, act_args);
  const Results results = call_below(*this);
  const auto& [output, argmax, rng_state] = results;
  gradient->attributes = {input.sym_sizes().slice(2).vec(), kernel_size.vec(), is_channels_last(pool_format(input)),
                          activation};
  gradient.of(output);
  if (!activation.is_identity()) gradient.keep_result(kOutput, output);
  gradient.keep(kArgmax, argmax);
  gradient.keep(kSamples, or_undefined(samples));
  gradient.keep(kRngState, rng_state);
  return results;
}

Tensors FractionalMaxPoolOp::differentiate(const Recorded<FractionalMaxPoolOp>& node, const Tensors& grads,
                                           const Tensors& kept) {
  const auto& [input_size, kernel_size, channels_last, act] = node.attributes;
  const OptionalTensor output = or_none(kept[kOutput]), samples = or_none(kept[kSamples]);
  return {call(FractionalMaxPoolBackwardOp{grads[0], output, kept[kArgmax], samples, kept[kRngState], input_size,
                                           kernel_size, channels_last, name_of(act), arguments_of(act)})};
}

const Operators<FractionalMaxPoolOp, FractionalMaxPoolBackwardOp, FractionalMaxPoolIndicesOp> operators;

// fractional_max_pool(input, kernel_size, output_size, samples, seed, act, act_kwargs, return_indices): the output, or
// the output and the indices.
PyObject* python_fractional_max_pool(PythonArguments& arguments) {
  const Tensor& input = arguments.tensor();
  const std::vector<int64_t> kernel_size = arguments.integers(), output_size = arguments.integers();
  const OptionalTensor samples = arguments.optional_tensor();
  const std::optional<int64_t> seed = arguments.seed();
  const Activation act = arguments.activation();
  const bool return_indices = arguments.flag();
  if (!arguments.fit()) return nullptr;
  Tensor indices;
  PyObject* output = arguments.released([&] {
    const auto [y, argmax, rng_state] = call(FractionalMaxPoolOp{
        input, kernel_size, c10::fromIntArrayRefSlow(output_size), samples, seed, name_of(act), arguments_of(act)});
    if (return_indices) {
      indices = call(FractionalMaxPoolIndicesOp{argmax, samples, rng_state, input.sym_sizes().slice(2), kernel_size});
    }
    return y;
  });
  if (!return_indices) return output;
  return pair_to_python(output, std::move(indices));
}

const PythonFunction functions[] = {PythonFunction::of<python_fractional_max_pool>("fractional_max_pool")};

}  // namespace
}  // namespace fusedtricks

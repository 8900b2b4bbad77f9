// max_pool2d(act(batch_norm(input))).
//
// Kept for backward: the input, two values per channel, and a byte an output, the place of its maximum.
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/div.h>
#include <ATen/ops/remainder.h>
#include <c10/core/DeviceGuard.h>

#include "calls/batch_norm_pool.h"
#include "checks/max_pool.h"
#include "ops/autocast.h"
#include "ops/batch_norm.h"
#include "ops/compositions.h"
#include "ops/python.h"

namespace fusedtricks {
namespace {

// The windows as a node keeps them.
struct Windows {
  std::vector<int64_t> kernel_size, stride, padding, dilation;
  bool ceil_mode;

  explicit Windows(const MaxPoolArguments& a)
      : kernel_size(a.kernel_size.vec()),
        stride(a.stride.vec()),
        padding(a.padding.vec()),
        dilation(a.dilation.vec()),
        ceil_mode(a.ceil_mode) {}

  auto values() const { return std::tie(kernel_size, stride, padding, dilation, ceil_mode); }
};

struct MaxPoolAttributes {
  Activation act{};
  std::optional<Windows> windows{};
  bool training = false;
  double eps = 0;

  auto values() const { return std::tie(act, windows, training, eps); }
};

PoolAxis pool_axis(const Tensor& input, const MaxPoolArguments& a, int axis) {
  const int64_t size = input.size(2 + axis);
  return {size, pooled_size(size, a, axis), a.kernel_size[axis], a.stride[axis], a.padding[axis], a.dilation[axis]};
}

MaxPool max_pool(const Tensor& input, const MaxPoolArguments& a) {
  return {pool_axis(input, a, 0), pool_axis(input, a, 1)};
}

Layout image_layout(const Tensor& input, at::MemoryFormat format) {
  return {input.size(0), input.size(1), input.size(2) * input.size(3), format == at::MemoryFormat::ChannelsLast};
}

// Where along an axis the elements at some places of the windows lie.
Tensor positions(const Tensor& place, const Windows& a, int axis) {
  Tensor start = at::arange(place.size(2 + axis), place.options()) * a.stride[axis] - a.padding[axis];
  if (axis == 0) start = start.unsqueeze(1);
  return start + place * a.dilation[axis];
}

// The maxima of y, whose places are known.
Tensor pooled(const Tensor& y, const Tensor& argmax, const Windows& a) {
  const Tensor place = argmax.to(at::kLong);
  const Tensor row = positions(at::div(place, a.kernel_size[1], "floor"), a, 0);
  const Tensor column = positions(at::remainder(place, a.kernel_size[1]), a, 1);
  const Tensor index = row * y.size(3) + column;
  return positions_in_one(y).gather(2, positions_in_one(index)).view_as(index);
}

struct BatchNormActMaxPool2dBackwardOp {
  // The gradients of batch_norm_act_max_pool2d.
  static constexpr const char* schema =
      "batch_norm_act_max_pool2d_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, "
      "Tensor argmax, Tensor save_mean, Tensor save_rstd, str act, float[] act_args, int[2] kernel_size, "
      "int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, bool training, float eps, bool[3] output_mask) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)";
  using Results = std::tuple<Tensor, Tensor, Tensor>;
  const Tensor &grad_output, &input;
  const OptionalTensor &weight, &bias;
  const Tensor &argmax, &save_mean, &save_rstd;
  std::string_view act;
  at::ArrayRef<double> act_args;
  at::IntArrayRef kernel_size, stride, padding, dilation;
  bool ceil_mode, training;
  double eps;
  std::array<bool, 3> output_mask;

  using Attributes = MaxPoolAttributes;
  static constexpr int kKept = 7;
  auto differentiable() const { return std::tie(grad_output, input, weight, bias); }
  MaxPoolArguments windows() const { return {kernel_size, stride, padding, dilation, ceil_mode}; }

  Results run() const;
  Results record() const;
  static Tensors differentiate(const Recorded<BatchNormActMaxPool2dBackwardOp>& node, const Tensors& grads,
                               const Tensors& kept);
};

BatchNormActMaxPool2dBackwardOp::Results BatchNormActMaxPool2dBackwardOp::run() const {
  const Activation activation = check_activation(act, act_args);
  check_batch_norm_pool_backward(*this);
  const c10::OptionalDeviceGuard guard(input.is_meta() ? std::nullopt : std::optional(input.device()));
  const Tensor dx = output_mask[0] ? empty_in_kernel_layout(input) : Tensor();
  const Tensor dw = empty_parameter_gradient(input, weight, output_mask[1]);
  const Tensor db = empty_parameter_gradient(input, bias, output_mask[2]);
  if (input.is_meta() || !input.numel()) return {dx, dw, db};

  const at::MemoryFormat format = image_format(input);
  const Tensor x = input.contiguous(format), dy = grad_output.contiguous(format), place = argmax.contiguous(format);
  const Tensor mean = save_mean.contiguous(), rstd = save_rstd.contiguous();
  BatchNormPoolBackward call{.norm = {.layout = image_layout(input, format),
                                      .dtype = x.scalar_type(),
                                      .act = activation,
                                      .dy = nullptr,
                                      .x = x.const_data_ptr(),
                                      .output = nullptr,
                                      .residual = nullptr,
                                      .dx = dx.defined() ? dx.data_ptr() : nullptr,
                                      .dz = nullptr,
                                      .weight = channel_values(weight),
                                      .bias = channel_values(bias),
                                      .dweight = channel_values(dw),
                                      .dbias = channel_values(db),
                                      .mean = mean.const_data_ptr<double>(),
                                      .rstd = rstd.const_data_ptr<double>(),
                                      .training = training,
                                      .workspace = nullptr},
                             .pool = max_pool(input, windows()),
                             .dy = dy.const_data_ptr(),
                             .argmax = place.const_data_ptr<uint8_t>()};
  const auto device = input.device().type();
  const Tensor memory = workspace(kernels::batch_norm_pool_backward_workspace(device)(call), input);
  if (memory.defined()) call.norm.workspace = memory.data_ptr();
  kernels::batch_norm_pool_backward(device)(call);
  return {dx, dw, db};
}

BatchNormActMaxPool2dBackwardOp::Results BatchNormActMaxPool2dBackwardOp::record() const {
  const Gradient<BatchNormActMaxPool2dBackwardOp> gradient(*this);
  gradient->attributes = {check_activation(act, act_args), Windows(windows()), training, eps};
  const Results results = call_below(*this);
  size_t place = 0;
  for (const Tensor& t : {grad_output, input, or_undefined(weight), or_undefined(bias), argmax, save_mean, save_rstd}) {
    gradient.keep(place++, t);
  }
  std::apply([&](const auto&... result) { (gradient.of(result), ...); }, results);
  return results;
}

// The backward written in differentiable operations, and differentiated.
Tensors BatchNormActMaxPool2dBackwardOp::differentiate(const Recorded<BatchNormActMaxPool2dBackwardOp>& node,
                                                       const Tensors& grads, const Tensors& kept) {
  const bool create_graph = at::GradMode::is_enabled();
  const at::AutoGradMode recording(true);
  const MaxPoolAttributes& a = node.attributes;
  Tensors saved = kept;
  for (size_t i = 0; i < 4; ++i) saved[i] = as_variable(saved[i]);
  const Tensor &dy = saved[0], &x = saved[1], &weight = saved[2], &bias = saved[3];
  const auto type = at::toOpMathType(x.scalar_type());

  const Tensor z = normalize(x.to(type), weight, bias, saved[5], saved[6], a.training, a.eps);
  const Tensor y = pooled(call_activation(z, a.act), saved[4], *a.windows);
  const Tensors first = gradients_of({y}, {x, weight, bias}, {dy.to(type)}, /*create_graph=*/true);
  return gradients_of(first, {dy, x, weight, bias}, grads, create_graph);
}

// max_pool2d(act(batch_norm(input))), the place of each maximum in its window, and the statistics as of batch_norm_act.
struct BatchNormActMaxPool2dOp {
  static constexpr const char* schema =
      "batch_norm_act_max_pool2d(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, Tensor? weight, Tensor? bias, str act, float[] act_args, int[2] kernel_size, "
      "int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, bool training, float? momentum, float eps) -> "
      "(Tensor output, Tensor argmax, Tensor save_mean, Tensor save_rstd)";
  using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;
  const Tensor& input;
  const OptionalTensor &running_mean, &running_var, &num_batches_tracked, &weight, &bias;
  std::string_view act;
  at::ArrayRef<double> act_args;
  at::IntArrayRef kernel_size, stride, padding, dilation;
  bool ceil_mode, training;
  std::optional<double> momentum;
  double eps;

  using Attributes = MaxPoolAttributes;
  static constexpr int kKept = 6;
  auto differentiable() const { return std::tie(input, weight, bias); }
  auto changed() const { return changed_statistics(*this); }
  MaxPoolArguments windows() const { return {kernel_size, stride, padding, dilation, ceil_mode}; }

  Results run() const;
  Results record() const;
  Results cast() const {
    const Tensor x = autocast_for(act, input);
    return call(BatchNormActMaxPool2dOp{x, running_mean, running_var, num_batches_tracked, weight, bias, act, act_args,
                                        kernel_size, stride, padding, dilation, ceil_mode, training, momentum, eps});
  }
  static Tensors differentiate(const Recorded<BatchNormActMaxPool2dOp>& node, const Tensors& grads,
                               const Tensors& kept);
};

BatchNormActMaxPool2dOp::Results BatchNormActMaxPool2dOp::run() const {
  const Activation activation = check_activation(act, act_args);
  check_max_pool(input, windows());
  check_batch_norm(*this);
  const c10::OptionalDeviceGuard guard(input.is_meta() ? std::nullopt : std::optional(input.device()));
  const at::MemoryFormat format = image_format(input);
  const c10::SymDimVector sizes{input.sym_size(0), input.sym_size(1), pooled_size(input.sym_size(2), windows(), 0),
                                pooled_size(input.sym_size(3), windows(), 1)};
  const Tensor y = at::empty_symint(sizes, input.options(), format);
  const Tensor argmax = at::empty_symint(sizes, input.options().dtype(at::kByte), format);
  const Statistics statistics = Statistics::in_two(input);
  const Results results{y, argmax, statistics.mean, statistics.rstd};
  if (input.is_meta()) return results;
  if (!input.numel()) {
    count_empty_batch(*this);
    statistics.mean.zero_();
    statistics.rstd.zero_();
    return results;
  }
  const Tensor x = input.contiguous(format);
  BatchNormPoolForward call{
      .norm = {.layout = image_layout(input, format),
               .dtype = x.scalar_type(),
               .act = activation,
               .x = x.const_data_ptr(),
               .residual = nullptr,
               .y = nullptr,
               .weight = channel_values(weight),
               .bias = channel_values(bias),
               .running_mean = channel_values(running_mean),
               .running_var = channel_values(running_var),
               .num_batches_tracked = num_batches_tracked ? num_batches_tracked->data_ptr<int64_t>() : nullptr,
               .mean = statistics.mean_data(),
               .rstd = statistics.rstd_data(),
               .training = training,
               .momentum = momentum.value_or(0),
               .cumulative = !momentum && num_batches_tracked,
               .eps = eps,
               .workspace = nullptr},
      .pool = max_pool(input, windows()),
      .y = y.data_ptr(),
      .argmax = argmax.mutable_data_ptr<uint8_t>()};
  const auto device = input.device().type();
  const Tensor memory = workspace(kernels::batch_norm_pool_forward_workspace(device)(call), input);
  if (memory.defined()) call.norm.workspace = memory.data_ptr();
  kernels::batch_norm_pool_forward(device)(call);
  return results;
}

BatchNormActMaxPool2dOp::Results BatchNormActMaxPool2dOp::record() const {
  const Gradient<BatchNormActMaxPool2dOp> gradient(*this);
  gradient->attributes = {check_activation(act, act_args), Windows(windows()), training, eps};
  const Results results = call_below(*this);
  const auto& [output, argmax, mean, rstd] = results;
  gradient.of(output);
  size_t place = 0;
  for (const Tensor& t : {input, or_undefined(weight), or_undefined(bias), argmax, mean, rstd}) {
    gradient.keep(place++, t);
  }
  return results;
}

Tensors BatchNormActMaxPool2dOp::differentiate(const Recorded<BatchNormActMaxPool2dOp>& node, const Tensors& grads,
                                               const Tensors& kept) {
  const auto& [act, windows, training, eps] = node.attributes;
  const OptionalTensor weight = or_none(kept[1]), bias = or_none(kept[2]);
  const auto [dx, dw, db] = call(BatchNormActMaxPool2dBackwardOp{grads[0],
                                                                 kept[0],
                                                                 weight,
                                                                 bias,
                                                                 kept[3],
                                                                 kept[4],
                                                                 kept[5],
                                                                 name_of(act),
                                                                 arguments_of(act),
                                                                 windows->kernel_size,
                                                                 windows->stride,
                                                                 windows->padding,
                                                                 windows->dilation,
                                                                 windows->ceil_mode,
                                                                 training,
                                                                 eps,
                                                                 {node.wants(0), node.wants(1), node.wants(2)}});
  return {dx, dw, db};
}

const Operators<BatchNormActMaxPool2dOp, BatchNormActMaxPool2dBackwardOp> operators;

// batch_norm_act_max_pool2d(input, running_mean, running_var, weight, bias, kernel_size, stride, padding, dilation,
//                           ceil_mode, act, act_kwargs, training, momentum, eps, num_batches_tracked)
PyObject* python_batch_norm_act_max_pool2d(PythonArguments& arguments) {
  const Tensor& input = arguments.tensor();
  const OptionalTensor running_mean = arguments.optional_tensor(), running_var = arguments.optional_tensor();
  const OptionalTensor weight = arguments.optional_tensor(), bias = arguments.optional_tensor();
  const std::vector<int64_t> kernel_size = arguments.integers(), stride = arguments.integers();
  const std::vector<int64_t> padding = arguments.integers(), dilation = arguments.integers();
  const bool ceil_mode = arguments.flag();
  const Activation act = arguments.activation();
  const bool training = arguments.flag();
  const std::optional<double> momentum = arguments.optional_number();
  const double eps = arguments.number();
  const OptionalTensor num_batches_tracked = arguments.optional_tensor();
  if (!arguments.fit() || !is_countable(num_batches_tracked, input)) return nullptr;
  return arguments.released([&] {
    return std::get<0>(call(BatchNormActMaxPool2dOp{input, running_mean, running_var, num_batches_tracked, weight, bias,
                                                    name_of(act), arguments_of(act), kernel_size, stride, padding,
                                                    dilation, ceil_mode, training, momentum, eps}));
  });
}

const PythonFunction functions[] = {PythonFunction::of<python_batch_norm_act_max_pool2d>("batch_norm_act_max_pool2d")};

}  // namespace
}  // namespace fusedtricks

// dropout(act(x + bias)) + residual for the tensors of one backend.
#include "calls/act_dropout.h"

#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "checks/checks.h"
#include "ops/tensor_layout.h"

namespace fusedtricks {
namespace {

using at::Tensor;

bool is_of_last_dimension(const Tensor& bias) { return bias.dim() == 1; }

// The layout that the kernels work in: the input's, but a bias of the last dimension wants it innermost.
Tensor empty_for_kernels(const Tensor& input, const OptionalTensor& bias) {
  const Tensor like = empty_in_kernel_layout(input);
  const bool fits = like.is_contiguous() || !bias || !is_of_last_dimension(*bias);
  return fits ? like : at::empty_like(input, input.options(), at::MemoryFormat::Contiguous);
}

// The result in the layout that it is promised in.
Tensor in_layout_of(const Tensor& input, const Tensor& result) {
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
  return bias && input.numel() ? bias->to(at::toOpMathType(input.scalar_type())).contiguous() : Tensor();
}

const void* data_or_null(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

std::tuple<Tensor, Tensor> act_dropout(const Tensor& input, const OptionalTensor& bias, const OptionalTensor& residual,
                                       c10::string_view act, at::ArrayRef<double> act_args, double p,
                                       std::optional<int64_t> seed) {
  const Activation activation = check_activation(act, act_args);
  const DropRate rate = check_act_dropout(input, bias, residual, p);
  const c10::DeviceGuard guard(input.device());
  const Tensor y = empty_for_kernels(input, bias), x = laid_out_like(input, y);
  const Tensor r = residual ? laid_out_like(*residual, y) : Tensor(), b = computable(bias, input);
  const Tensor rng_state = empty_rng_state(input, rate);
  const bool has_mask = rng_state.numel();
  const ActDropoutForward a{
      tail_of(y, bias, has_mask), activation, rate, x.const_data_ptr(), data_or_null(b), data_or_null(r), y.data_ptr()};
  if (has_mask || y.numel()) {
    backend::act_dropout_forward(a, seed, has_mask ? rng_state.data_ptr<int64_t>() : nullptr);
  }
  return {in_layout_of(input, y), rng_state};
}

std::tuple<Tensor, Tensor> act_dropout_backward(const Tensor& grad_output, const OptionalTensor& input,
                                                const OptionalTensor& output, const OptionalTensor& bias,
                                                const OptionalTensor& rng_state, c10::string_view act,
                                                at::ArrayRef<double> act_args, double p,
                                                std::array<bool, 2> output_mask) {
  const Activation activation = check_activation(act, act_args);
  const DropRate rate =
      check_act_dropout_backward(grad_output, input, output, bias, rng_state, activation, p, output_mask);
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
  ActDropoutBackward a{tail_of(dx, bias, state.defined()),
                       activation,
                       rate,
                       input    ? Kept::kInput
                       : output ? Kept::kResult
                                : Kept::kNothing,
                       state.defined(),
                       dy.const_data_ptr(),
                       data_or_null(s),
                       data_or_null(b),
                       output_mask[0] ? dx.data_ptr() : nullptr,
                       db.defined() ? db.data_ptr() : nullptr,
                       nullptr};
  const int64_t bytes = backend::act_dropout_backward_workspace(a);
  const Tensor memory = bytes ? at::empty({bytes}, dx.options().dtype(at::kByte)) : Tensor();
  if (bytes) a.workspace = memory.data_ptr();
  backend::act_dropout_backward(a, state.defined() ? state.const_data_ptr<int64_t>() : nullptr);
  return {output_mask[0] ? in_layout_of(grad_output, dx) : Tensor(),
          db.defined() ? db.to(bias->scalar_type()) : Tensor()};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, FUSEDTRICKS_BACKEND, m) {
  m.impl("act_dropout", act_dropout);
  m.impl("act_dropout_backward", act_dropout_backward);
}

}  // namespace fusedtricks

// The activations alone, for the tensors of one backend: one pass forward, one backward, in memory order whatever the
// strides.
#include "calls/activation.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "checks/checks.h"

namespace fusedtricks {
namespace {

using at::Tensor;

ActivationCall call_for(const Activation& activation, const Tensor& t) {
  return {activation, t.scalar_type(), t.numel()};
}

// t itself where it is dense with model's strides, else a copy that is.
Tensor with_strides_of(const Tensor& t, const Tensor& model) {
  return t.strides() == model.strides() ? t : at::empty_like(model, t.options()).copy_(t);
}

Tensor activation(const Tensor& input, c10::string_view act, at::ArrayRef<double> act_args) {
  const Activation activation = check_activation(act, act_args);
  check_floating(input, "activation", "input");
  const c10::DeviceGuard guard(input.device());
  const Tensor y = at::empty_like(input);
  if (!input.numel()) return y;
  backend::activation_forward(call_for(activation, y), with_strides_of(input, y).const_data_ptr(), y.data_ptr());
  return y;
}

void activation_inplace(const Tensor& input, c10::string_view act, at::ArrayRef<double> act_args) {
  const Activation activation = check_activation(act, act_args);
  check_floating(input, "activation", "input");
  at::assert_no_internal_overlap(input);
  if (!input.numel()) return;
  const c10::DeviceGuard guard(input.device());
  const bool dense = input.is_non_overlapping_and_dense();
  const Tensor y = dense ? input : at::empty_like(input).copy_(input);
  backend::activation_forward(call_for(activation, y), y.const_data_ptr(), y.data_ptr());
  if (!dense) input.copy_(y);
}

// out = grad * f(kept), by the backend's function for it.
Tensor multiply(const Tensor& grad, const Tensor& kept, c10::string_view act, at::ArrayRef<double> act_args,
                void (*function)(const ActivationCall&, const void*, const void*, void*)) {
  const Activation activation = check_activation(act, act_args);
  check_floating(kept, "activation_backward", "saved");
  check_like(grad, kept, "grad_output", "saved");
  const c10::DeviceGuard guard(kept.device());
  const Tensor out = at::empty_like(kept);
  if (!kept.numel()) return out;
  const Tensor g = with_strides_of(grad, out), k = with_strides_of(kept, out);
  function(call_for(activation, out), g.const_data_ptr(), k.const_data_ptr(), out.data_ptr());
  return out;
}

Tensor activation_backward(const Tensor& grad_output, const Tensor& saved, c10::string_view act,
                           at::ArrayRef<double> act_args) {
  return multiply(grad_output, saved, act, act_args, backend::activation_backward);
}

Tensor activation_backward_slope(const Tensor& grad, const Tensor& saved, c10::string_view act,
                                 at::ArrayRef<double> act_args) {
  return multiply(grad, saved, act, act_args, backend::activation_backward_slope);
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, FUSEDTRICKS_BACKEND, m) {
  m.impl("activation", activation);
  m.impl("activation_", activation_inplace);
  m.impl("activation_backward", activation_backward);
  m.impl("activation_backward_slope", activation_backward_slope);
}

}  // namespace fusedtricks

// Dropout for the tensors of one backend.
#include "calls/dropout.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "checks/checks.h"
#include "ops/tensor_layout.h"

namespace fusedtricks {
namespace {

using at::Tensor;

// y = dropout of x, both dense and of one layout.
DropoutCall call_for(const Tensor& x, const Tensor& y, const DropRate& rate) {
  // A tensor without channels is one row.
  const Layout layout = y.dim() >= 2 ? layout_of(y) : Layout{1, 1, y.numel(), false};
  return {layout, y.is_contiguous(), y.scalar_type(), rate, x.const_data_ptr(), y.data_ptr()};
}

Tensor draw(const DropoutCall& call, std::optional<int64_t> seed, const Tensor& like) {
  const Tensor rng_state = at::empty({2}, like.options().dtype(at::kLong));
  backend::dropout_forward(call, seed, rng_state.data_ptr<int64_t>());
  return rng_state;
}

std::tuple<Tensor, Tensor> dropout(const Tensor& input, double p, c10::string_view mode, std::optional<int64_t> seed) {
  check_floating(input, "dropout", "input");
  const DropRate rate = check_dropout(p, mode);
  const c10::DeviceGuard guard(input.device());
  const Tensor y = empty_in_kernel_layout(input), x = laid_out_like(input, y);
  return {y, draw(call_for(x, y, rate), seed, y)};
}

Tensor dropout_inplace(const Tensor& input, double p, c10::string_view mode, std::optional<int64_t> seed) {
  check_floating(input, "dropout", "input");
  const DropRate rate = check_dropout(p, mode);
  at::assert_no_internal_overlap(input);
  const c10::DeviceGuard guard(input.device());
  const bool as_it_is = is_kernel_layout(input);
  const Tensor y = as_it_is ? input : input.contiguous();
  const Tensor rng_state = draw(call_for(y, y, rate), seed, y);
  if (!as_it_is) input.copy_(y);
  return rng_state;
}

Tensor dropout_backward(const Tensor& grad_output, const Tensor& rng_state, double p, c10::string_view mode) {
  check_floating(grad_output, "dropout_backward", "grad_output");
  const DropRate rate = check_dropout(p, mode);
  check_rng_state(rng_state, grad_output);
  const c10::DeviceGuard guard(grad_output.device());
  const Tensor dx = empty_in_kernel_layout(grad_output), dy = laid_out_like(grad_output, dx);
  const Tensor state = rng_state.contiguous();
  backend::dropout_backward(call_for(dy, dx, rate.linear()), state.const_data_ptr<int64_t>());
  return dx;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, FUSEDTRICKS_BACKEND, m) {
  m.impl("dropout", dropout);
  m.impl("dropout_", dropout_inplace);
  m.impl("dropout_backward", dropout_backward);
}

}  // namespace fusedtricks

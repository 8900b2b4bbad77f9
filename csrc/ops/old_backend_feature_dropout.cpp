// Dropout of whole channels, samples or batches for the tensors of one backend.
#include "calls/feature_dropout.h"

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

FeatureDropoutCall call_for(const Tensor& x, const Tensor& residual, const Tensor& y, int64_t mask_dims,
                            const DropRate& rate) {
  return {groups_of(y, mask_dims),
          y.numel(),
          y.scalar_type(),
          rate,
          x.const_data_ptr(),
          residual.defined() ? residual.const_data_ptr() : nullptr,
          y.data_ptr()};
}

Tensor draw(const FeatureDropoutCall& call, std::optional<int64_t> seed, const Tensor& like) {
  const Tensor rng_state = at::empty({2}, like.options().dtype(at::kLong));
  backend::feature_dropout_forward(call, seed, rng_state.data_ptr<int64_t>());
  return rng_state;
}

std::tuple<Tensor, Tensor> feature_dropout(const Tensor& input, const OptionalTensor& residual, int64_t mask_dims,
                                           double p, c10::string_view mode, std::optional<int64_t> seed) {
  const DropRate rate = check_feature_dropout(input, residual, mask_dims, p, mode);
  const c10::DeviceGuard guard(input.device());
  const Tensor y = empty_in_kernel_layout(input), x = laid_out_like(input, y);
  const Tensor r = residual ? laid_out_like(*residual, y) : Tensor();
  return {y, draw(call_for(x, r, y, mask_dims, rate), seed, y)};
}

Tensor feature_dropout_inplace(const Tensor& input, int64_t mask_dims, double p, c10::string_view mode,
                               std::optional<int64_t> seed) {
  const DropRate rate = check_feature_dropout(input, std::nullopt, mask_dims, p, mode);
  at::assert_no_internal_overlap(input);
  const c10::DeviceGuard guard(input.device());
  const bool as_it_is = is_kernel_layout(input);
  const Tensor y = as_it_is ? input : input.contiguous();
  const Tensor rng_state = draw(call_for(y, Tensor(), y, mask_dims, rate), seed, y);
  if (!as_it_is) input.copy_(y);
  return rng_state;
}

Tensor feature_dropout_backward(const Tensor& grad_output, const Tensor& rng_state, int64_t mask_dims, double p,
                                c10::string_view mode) {
  const DropRate rate = check_feature_dropout(grad_output, std::nullopt, mask_dims, p, mode);
  check_rng_state(rng_state, grad_output);
  const c10::DeviceGuard guard(grad_output.device());
  const Tensor dx = empty_in_kernel_layout(grad_output), dy = laid_out_like(grad_output, dx);
  const Tensor state = rng_state.contiguous();
  backend::feature_dropout_backward(call_for(dy, Tensor(), dx, mask_dims, rate.linear()),
                                    state.const_data_ptr<int64_t>());
  return dx;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, FUSEDTRICKS_BACKEND, m) {
  m.impl("feature_dropout", feature_dropout);
  m.impl("feature_dropout_", feature_dropout_inplace);
  m.impl("feature_dropout_backward", feature_dropout_backward);
}

}  // namespace fusedtricks

#include "ops/batch_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/zeros.h>

namespace fusedtricks {
namespace {

// One value per channel as a tensor that broadcasts against x.
Tensor per_channel(const Tensor& t, const Tensor& x) {
  std::vector<int64_t> shape(x.dim(), 1);
  shape[1] = -1;
  return t.view(shape);
}

}  // namespace

Tensor empty_parameter_gradient(const Tensor& input, const OptionalTensor& parameter, bool wanted) {
  if (!wanted) return Tensor();
  const auto options = parameter ? parameter->options() : input.options();
  if (input.is_meta()) return at::empty_symint({input.sym_size(1)}, options);
  return input.numel() ? at::empty({input.size(1)}, options) : at::zeros({input.size(1)}, options);
}

Tensor normalize(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& rstd,
                 bool training, double eps) {
  Tensor xhat;
  if (training) {
    std::vector<int64_t> dims{0};
    for (int64_t d = 2; d < x.dim(); ++d) dims.push_back(d);
    const Tensor centred = x - x.mean(dims, /*keepdim=*/true);
    xhat = centred * at::rsqrt(centred.square().mean(dims, /*keepdim=*/true) + eps);
  } else {
    xhat = (x - per_channel(mean, x).to(x.scalar_type())) * per_channel(rstd, x).to(x.scalar_type());
  }
  if (weight.defined()) xhat = xhat * per_channel(weight, x);
  if (bias.defined()) xhat = xhat + per_channel(bias, x);
  return xhat;
}

}  // namespace fusedtricks

// What the operators with a BatchNorm share: its statistics in memory, and its composition in differentiable
// operations.
#pragma once

#include <ATen/core/Tensor.h>

#include "calls/batch_norm.h"
#include "checks/batch_norm.h"
#include "ops/grad_node.h"
#include "ops/gradients.h"
#include "ops/tensors.h"

namespace fusedtricks {

inline ChannelValues channel_values(const Tensor& t) {
  if (!t.defined()) return {};
  return {t.data_ptr(), t.scalar_type(), t.stride(0)};
}
inline ChannelValues channel_values(const OptionalTensor& t) { return t ? channel_values(*t) : ChannelValues{}; }

// What a forward normalised with: mean and rstd of every channel, float64.
struct Statistics {
  Tensor mean, rstd;  // where rstd is undefined, its values lie behind those of the mean
  int64_t channels;   // of one block

  static Statistics in_two(const Tensor& input) {
    const auto options = input.options().dtype(at::kDouble);
    const auto channels = input.sym_size(1);
    return {at::empty_symint({channels}, options), at::empty_symint({channels}, options), 0};
  }
  // In one allocation, for calls whose results are not those of an operator.
  static Statistics in_one(const Tensor& input) {
    const int64_t channels = input.size(1);
    return {at::empty({2 * channels}, input.options().dtype(at::kDouble)), Tensor(), channels};
  }

  double* mean_data() const { return mean.mutable_data_ptr<double>(); }
  double* rstd_data() const { return rstd.defined() ? rstd.mutable_data_ptr<double>() : mean_data() + channels; }
  // In two tensors.
  Statistics split() const {
    if (rstd.defined()) return *this;
    return {mean.narrow(0, 0, channels), mean.narrow(0, channels, channels), channels};
  }
};

// An empty batch counts, as it does in stock.
template <class Op>
void count_empty_batch(const Op& a) {
  if (a.training && a.num_batches_tracked) a.num_batches_tracked->add_(1);
}

// The arguments that a call in training writes to.
template <class Op>
std::tuple<OptionalTensor, OptionalTensor, OptionalTensor> changed_statistics(const Op& a) {
  if (!a.training) return {};
  return {a.running_mean, a.running_var, a.num_batches_tracked};
}

// The gradient of a parameter (weight or bias), to be written; undefined where it is not wanted.
Tensor empty_parameter_gradient(const Tensor& input, const OptionalTensor& parameter, bool wanted);

// weight * (x - mean) * rstd + bias, in differentiable ATen operations; mean and rstd are used in evaluation alone.
Tensor normalize(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& rstd,
                 bool training, double eps);

}  // namespace fusedtricks

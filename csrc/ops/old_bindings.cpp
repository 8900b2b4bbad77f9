// The eager door: the operators as plain Python functions, called without the overhead of torch.ops.
#include <torch/csrc/utils/pybind.h>

#include "checks/fractional_max_pool.h"
#include "ops/old_ops.h"
#include "core/philox.h"

namespace py = pybind11;

namespace fusedtricks {
namespace {

using at::Tensor;

Tensor batch_norm_act(const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                      const OptionalTensor& num_batches_tracked, const OptionalTensor& weight,
                      const OptionalTensor& bias, const OptionalTensor& residual, const std::string& act,
                      const std::vector<double>& act_args, bool training, std::optional<double> momentum, double eps) {
  return std::get<0>(ops::batch_norm_act(input, running_mean, running_var, num_batches_tracked, weight, bias, residual,
                                         act, act_args, training, momentum, eps));
}

Tensor batch_norm_act_max_pool2d(const Tensor& input, const OptionalTensor& running_mean,
                                 const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked,
                                 const OptionalTensor& weight, const OptionalTensor& bias, const std::string& act,
                                 const std::vector<double>& act_args, const std::vector<int64_t>& kernel_size,
                                 const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                 const std::vector<int64_t>& dilation, bool ceil_mode, bool training,
                                 std::optional<double> momentum, double eps) {
  return std::get<0>(ops::batch_norm_act_max_pool2d(input, running_mean, running_var, num_batches_tracked, weight, bias,
                                                    act, act_args, kernel_size, stride, padding, dilation, ceil_mode,
                                                    training, momentum, eps));
}

Tensor batch_norm_act_dropout(const Tensor& input, const OptionalTensor& running_mean,
                              const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked,
                              const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                              const std::string& act, const std::vector<double>& act_args, bool training,
                              std::optional<double> momentum, double eps, double p, std::optional<int64_t> seed) {
  return std::get<0>(ops::batch_norm_act_dropout(input, running_mean, running_var, num_batches_tracked, weight, bias,
                                                 residual, act, act_args, training, momentum, eps, p, seed));
}

Tensor activation(const Tensor& input, const std::string& act, const std::vector<double>& act_args, bool inplace) {
  if (!inplace) return ops::activation(input, act, act_args);
  ops::activation_(input, act, act_args);
  return input;
}

Tensor dropout(const Tensor& input, double p, const std::string& mode, std::optional<int64_t> seed, bool inplace) {
  if (!inplace) return std::get<0>(ops::dropout(input, p, mode, seed));
  ops::dropout_(input, p, mode, seed);
  return input;
}

Tensor act_dropout(const Tensor& input, const OptionalTensor& bias, const OptionalTensor& residual,
                   const std::string& act, const std::vector<double>& act_args, double p, std::optional<int64_t> seed) {
  return std::get<0>(ops::act_dropout(input, bias, residual, act, act_args, p, seed));
}

Tensor feature_dropout(const Tensor& input, const OptionalTensor& residual, int64_t mask_dims, double p,
                       const std::string& mode, std::optional<int64_t> seed, bool inplace) {
  if (!inplace) return std::get<0>(ops::feature_dropout(input, residual, mask_dims, p, mode, seed));
  ops::feature_dropout_(input, mask_dims, p, mode, seed);
  return input;
}

// The indices too where they are asked for, else an undefined tensor: None.
std::tuple<Tensor, Tensor> fractional_max_pool(const Tensor& input, const std::vector<int64_t>& kernel_size,
                                               const std::vector<int64_t>& output_size, const OptionalTensor& samples,
                                               std::optional<int64_t> seed, const std::string& act,
                                               const std::vector<double>& act_args, bool return_indices) {
  const auto [output, argmax, rng_state] =
      ops::fractional_max_pool(input, kernel_size, c10::fromIntArrayRefSlow(output_size), samples, seed, act, act_args);
  if (!return_indices) return {output, Tensor()};
  return {output,
          ops::fractional_max_pool_indices(argmax, samples, rng_state, input.sym_sizes().slice(2), kernel_size)};
}

void check_monotone_activation(const std::string& act, const std::vector<double>& act_args) {
  check_monotone(act, act_args);
}

Tensor drop_connect_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, double p,
                           std::optional<int64_t> seed) {
  return std::get<0>(ops::drop_connect_linear(input, weight, bias, p, seed));
}

Tensor drop_connect_convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                const std::vector<int64_t>& dilation, int64_t groups, double p,
                                std::optional<int64_t> seed) {
  return std::get<0>(ops::drop_connect_convolution(input, weight, bias, stride, padding, dilation, groups, p, seed));
}

std::vector<std::pair<std::string, std::vector<std::pair<std::string, double>>>> activations() {
  std::vector<std::pair<std::string, std::vector<std::pair<std::string, double>>>> list;
  for (const auto* info : Activations<double>::info) {
    auto& entry = list.emplace_back(info->name, std::vector<std::pair<std::string, double>>());
    for (int i = 0; i < info->parameter_count(); ++i) {
      entry.second.emplace_back(info->parameters[i].name, info->parameters[i].value);
    }
  }
  return list;
}

std::array<uint32_t, 4> philox(uint64_t seed, uint64_t offset, uint64_t counter) {
  const auto block = philox_block(seed, offset, counter);
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

}  // namespace
}  // namespace fusedtricks

PYBIND11_MODULE(_C, m) {
  using namespace fusedtricks;
  const py::call_guard<py::gil_scoped_release> without_gil;
  m.def("batch_norm_act", &batch_norm_act, without_gil);
  m.def("batch_norm_act_max_pool2d", &batch_norm_act_max_pool2d, without_gil);
  m.def("batch_norm_act_dropout", &batch_norm_act_dropout, without_gil);
  m.def("activation", &activation, without_gil);
  m.def("dropout", &dropout, without_gil);
  m.def("act_dropout", &act_dropout, without_gil);
  m.def("feature_dropout", &feature_dropout, without_gil);
  m.def("fractional_max_pool", &fractional_max_pool, without_gil);
  m.def("check_monotone", &check_monotone_activation);
  m.def("drop_connect_linear", &drop_connect_linear, without_gil);
  m.def("drop_connect_convolution", &drop_connect_convolution, without_gil);
  m.def("add_samples", &ops::add_samples, without_gil);
  m.def("select_samples", &ops::select_samples, without_gil);
  m.def("branch_samples", &ops::branch_samples, without_gil);
  m.def("activations", &activations);
  m.def("philox", &philox);
}

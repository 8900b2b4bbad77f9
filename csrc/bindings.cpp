// The eager door: the operators as plain Python functions, called without the overhead of torch.ops.
#include <torch/csrc/utils/pybind.h>

#include "ops.h"
#include "philox.h"

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

Tensor dropout(const Tensor& input, double p, bool scale_kept, std::optional<int64_t> seed, bool inplace) {
  if (!inplace) return std::get<0>(ops::dropout(input, p, scale_kept, seed));
  ops::dropout_(input, p, scale_kept, seed);
  return input;
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
  m.def("batch_norm_act_dropout", &batch_norm_act_dropout, without_gil);
  m.def("activation", &activation, without_gil);
  m.def("dropout", &dropout, without_gil);
  m.def("activations", &activations);
  m.def("philox", &philox);
}

// The entry of the module `_C`: its functions, the libraries of kernels that it loads, what Python asks about both.
#include <dlfcn.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <map>
#include <string>
#include <vector>

#include "calls/device.h"
#include "checks/fractional_max_pool.h"
#include "core/philox.h"
#include "ops/autocast.h"
#include "ops/python.h"

namespace py = pybind11;

namespace fusedtricks {
namespace {

// Opens a library of kernels and lets it answer for a device, "cpu" or "cuda". It stays open.
void load_kernels(const std::string& device, const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(library, "fusedtricks: ", path, " cannot be loaded: ", dlerror());
  using Provide = const std::vector<NamedFunction>* (*)();
  const auto provide = reinterpret_cast<Provide>(dlsym(library, "fusedtricks_provided_functions"));
  TORCH_CHECK(provide, "fusedtricks: ", path, " is not a library of kernels");
  KernelSlot::fill(c10::Device(device).type(), *provide());
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

// ValueError unless the activation never decreases.
void check_never_decreases(const std::string& act, const std::vector<double>& act_args) {
  check_monotone(act, act_args);
}

// What the activation with these parameters says of itself.
std::map<std::string, bool> activation_facts(const std::string& name, const std::vector<double>& parameters) {
  const Activation act = check_activation(name, parameters);
  return {{"keeps_result", act.keeps_result()}, {"never_decreases", act.monotone()}};
}

// Settings of the environment are read when kernels are loaded; this reads them again, on devices that have any.
void reload_settings() {
  for (const auto device : {c10::DeviceType::CPU, c10::DeviceType::CUDA}) {
    if (kernels::reload_settings.is_on(device)) kernels::reload_settings(device)();
  }
}

std::array<uint32_t, 4> philox(uint64_t seed, uint64_t offset, uint64_t counter) {
  const auto block = philox_block(seed, offset, counter);
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

}  // namespace
}  // namespace fusedtricks

TORCH_LIBRARY(fusedtricks, m) {
  // The instruction set that the CPU kernels were compiled for: default, avx2 or avx512.
  m.def("cpu_capability() -> str", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, [] {
          return std::string(fusedtricks::kernels::instruction_set(c10::DeviceType::CPU)());
        }));
}

PYBIND11_MODULE(_C, m) {
  using namespace fusedtricks;
  PythonFunction::add_to(m.ptr());
  m.def("load_kernels", &load_kernels);
  m.def("reload_settings", &reload_settings);
  m.def("activations", &activations);
  m.def("activation_facts", &activation_facts);
  m.def("is_forked", &is_forked);
  m.def("autocasts_to_float32", [](const std::string& function, const std::string& device) {
    return autocasts_to_float32(function, c10::Device(device).type());
  });
  m.def("check_monotone", &check_never_decreases);
  m.def("philox", &philox);
}

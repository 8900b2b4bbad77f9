#include "ops/operator.h"

#include "calls/kernel.h"

namespace fusedtricks {

void unsupported_device(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  for (const auto& value : *stack) {
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    const Tensor& t = value.toTensor();
    TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().name(), ": ", op.schema().arguments()[0].name(), " on device ",
                                t.device(), " with layout ", t.layout(),
                                " is not supported; it takes a dense tensor on a device whose backend "
                                "`python -m fusedtricks info` lists as built");
  }
}

AnyFunction KernelSlot::missing(c10::DeviceType device) const {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "fusedtricks: ", name_, " has no kernel for device ",
                              c10::DeviceTypeName(device, true),
                              "; `python -m fusedtricks info` lists the backends that were built");
}

void KernelSlot::fill(c10::DeviceType device, const std::vector<NamedFunction>& provided) {
  loaded()[place(device)] = true;
  for (KernelSlot* slot : all()) {
    for (const NamedFunction& each : provided) {
      if (std::string_view(each.name) == slot->name_) slot->functions_[place(device)] = each.function;
    }
  }
}

}  // namespace fusedtricks

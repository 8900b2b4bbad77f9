// Kernels are found by name: the operators call slots that each device's library fills when it is loaded. So operators
// are compiled once, and kernels once for each device and instruction set.
//
//   calls/           inline const Kernel<void(const DropoutCall&)> dropout{"dropout"};
//   ops/             kernels::dropout(device)(call);
//   cpu/ and cuda/   const Provided provided(kernels::dropout, cpu::dropout);
#pragma once

#include <c10/core/DeviceType.h>

#include <vector>

namespace fusedtricks {

using AnyFunction = void (*)();

// A kernel as a library exports it.
struct NamedFunction {
  const char* name;
  AnyFunction function;
};

// The functions of one kernel, for each device that has it.
class KernelSlot {
 public:
  explicit KernelSlot(const char* name) : name_(name) { all().push_back(this); }
  KernelSlot(const KernelSlot&) = delete;
  KernelSlot& operator=(const KernelSlot&) = delete;

  const char* name() const { return name_; }
  // NotImplementedError if the device has no such kernel, or its library is not loaded.
  AnyFunction on(c10::DeviceType device) const {
    AnyFunction function = has_place(device) ? functions_[place(device)] : nullptr;
    return function ? function : missing(device);
  }
  bool is_on(c10::DeviceType device) const { return has_place(device) && functions_[place(device)]; }

  // Whether the device's library is loaded; a meta tensor needs none.
  static bool is_loaded(c10::DeviceType device) {
    return device == c10::DeviceType::Meta || (has_place(device) && loaded()[place(device)]);
  }

  // Puts the functions that a device's library exports into their slots.
  static void fill(c10::DeviceType device, const std::vector<NamedFunction>& provided);

 private:
  static std::vector<KernelSlot*>& all() {
    static std::vector<KernelSlot*> slots;
    return slots;
  }
  static bool (&loaded())[2] {
    static bool devices[2] = {};
    return devices;
  }
  static bool has_place(c10::DeviceType device) {
    return device == c10::DeviceType::CPU || device == c10::DeviceType::CUDA;
  }
  static int place(c10::DeviceType device) { return device == c10::DeviceType::CPU ? 0 : 1; }
  [[noreturn]] AnyFunction missing(c10::DeviceType device) const;

  const char* name_;
  AnyFunction functions_[2] = {};
};

template <class Function>
class Kernel : public KernelSlot {
 public:
  using KernelSlot::KernelSlot;

  Function* operator()(c10::DeviceType device) const { return reinterpret_cast<Function*>(on(device)); }
};

// All functions that this library exports.
inline std::vector<NamedFunction>& provided_functions() {
  static std::vector<NamedFunction> functions;
  return functions;
}

// Exports a function of this library as the kernel of that name.
struct Provided {
  template <class Function>
  Provided(const Kernel<Function>& kernel, Function* function) {
    provided_functions().push_back({kernel.name(), reinterpret_cast<AnyFunction>(function)});
  }
};

}  // namespace fusedtricks

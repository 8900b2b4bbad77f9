// Kernels by name. What the operators call and what a device's library provides meet here, so that the operators are
// compiled once and the kernels once for every device and instruction set.
//
//   inline const Kernel<void(const DropoutCall&)> dropout{"dropout"};    declared in calls/, for both sides
//   dropout(device)(call);                                               called in ops/
//   const Provided provided(kernels::dropout, cpu::dropout);             provided in cpu/ and in cuda/
#pragma once

#include <c10/core/DeviceType.h>

#include <vector>

namespace fusedtricks {

using AnyFunction = void (*)();

// A kernel as a library hands it out.
struct NamedFunction {
  const char* name;
  AnyFunction function;
};

// The functions of a kernel, one for each device that has it.
class KernelSlot {
 public:
  explicit KernelSlot(const char* name) : name_(name) { all().push_back(this); }
  KernelSlot(const KernelSlot&) = delete;
  KernelSlot& operator=(const KernelSlot&) = delete;

  const char* name() const { return name_; }
  // NotImplementedError where the device's library is not loaded.
  AnyFunction on(c10::DeviceType device) const {
    AnyFunction function = has_place(device) ? functions_[place(device)] : nullptr;
    return function ? function : missing(device);
  }
  bool is_on(c10::DeviceType device) const { return has_place(device) && functions_[place(device)]; }

  // Puts what a library provides for a device where it will be called from.
  static void fill(c10::DeviceType device, const std::vector<NamedFunction>& provided);

 private:
  static std::vector<KernelSlot*>& all() {
    static std::vector<KernelSlot*> slots;
    return slots;
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

// All that this library provides.
inline std::vector<NamedFunction>& provided_functions() {
  static std::vector<NamedFunction> functions;
  return functions;
}

struct Provided {
  template <class Function>
  Provided(const Kernel<Function>& kernel, Function* function) {
    provided_functions().push_back({kernel.name(), reinterpret_cast<AnyFunction>(function)});
  }
};

}  // namespace fusedtricks

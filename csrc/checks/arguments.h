// Checks that several operators share. Each names the argument, what it got and what it takes, and raises the class
// that stock PyTorch raises for the same mistake. They run before anything is written.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>

#include "core/activation_functions.h"
#include "core/drop_rate.h"
#include "core/dtypes.h"

namespace fusedtricks {

using OptionalTensor = std::optional<at::Tensor>;

// The activation of that name with its parameters; ValueError where there is none.
inline Activation check_activation(std::string_view name, at::ArrayRef<double> arguments) {
  const int index = find_activation(name);
  if (index < 0) {
    std::string known;
    for (const auto* info : Activations<double>::info) known += std::string(known.empty() ? "" : ", ") + info->name;
    TORCH_CHECK_VALUE(false, "act: unknown activation '", std::string(name), "'; known are: ", known);
  }
  Activation act{index, {}};
  const int count = act.info().parameter_count();
  TORCH_CHECK_VALUE(int64_t(arguments.size()) == count, "act_args: ", act.info().name, " takes ", count,
                    " parameters, got ", arguments.size());
  for (int i = 0; i < count; ++i) act.parameters[i] = arguments[i];
  return act;
}

// An activation as operators take it.
inline std::string_view name_of(const Activation& act) { return act.info().name; }
inline at::ArrayRef<double> arguments_of(const Activation& act) {
  return {act.parameters, size_t(act.info().parameter_count())};
}

// "float32, float64, bfloat16 or float16"
inline std::string supported_dtypes() {
  std::string names;
  for (size_t i = 0; i < std::size(kDtypes); ++i) {
    const char* separator = i == 0 ? "" : i + 1 < std::size(kDtypes) ? ", " : " or ";
    names += separator + std::string(c10::getDtypeNames(kDtypes[i]).first);
  }
  return names;
}

// NotImplementedError unless there are kernels for the dtype.
inline void check_floating(const at::Tensor& t, const char* op, const char* name) {
  const auto type = t.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(is_supported(type), op, ": ", name, " of dtype ", type, " is not supported; it takes ",
                              supported_dtypes());
}

// RuntimeError unless a parameter has the input's dtype, or float where the input has a smaller one.
inline void check_parameter_dtype(const at::Tensor& t, const at::Tensor& input, const char* name) {
  const auto type = input.scalar_type();
  const bool small = c10::elementSize(type) < sizeof(float);
  TORCH_CHECK(t.scalar_type() == type || (small && t.scalar_type() == at::kFloat), name, " has dtype ", t.scalar_type(),
              "; with input of dtype ", type, " it takes ", type, small ? " or Float" : "");
}

inline void check_device(const at::Tensor& t, const at::Tensor& input, const char* name) {
  TORCH_CHECK(t.device() == input.device(), name, " is on device ", t.device(), ", input on ", input.device(),
              "; they must be on one device");
}

// RuntimeError unless t has model's shape, dtype and device.
inline void check_like(const at::Tensor& t, const at::Tensor& model, const char* name, const char* model_name) {
  check_device(t, model, name);
  TORCH_CHECK(t.sym_sizes() == model.sym_sizes(), name, " has shape ", t.sym_sizes(), "; it takes that of ", model_name,
              ", ", model.sym_sizes());
  TORCH_CHECK(t.scalar_type() == model.scalar_type(), name, " has dtype ", t.scalar_type(), "; it takes that of ",
              model_name, ", ", model.scalar_type());
}

// RuntimeError unless t, where given, holds one value per channel in a dtype that goes with the input's.
inline void check_per_channel(const OptionalTensor& t, const at::Tensor& input, const char* name) {
  if (!t) return;
  check_device(*t, input, name);
  TORCH_CHECK(t->dim() == 1 && t->sym_size(0) == input.sym_size(1), name, " should contain ", input.sym_size(1),
              " elements, one per channel of input; got shape ", t->sym_sizes());
  check_parameter_dtype(*t, input, name);
}

// ValueError unless 0 <= p <= 1.
inline void check_probability(double p) {
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, "dropout probability p has to be between 0 and 1, but got ", p);
}

// The mode of that name; ValueError where there is none.
inline DropMode check_drop_mode(std::string_view mode) {
  if (mode == "inverted") return DropMode::kInverted;
  if (mode == "classic") return DropMode::kClassic;
  TORCH_CHECK_VALUE(mode == "alpha", "mode has to be 'inverted', 'classic' or 'alpha', but got '", std::string(mode),
                    "'");
  return DropMode::kAlpha;
}

inline std::string_view name_of(DropMode mode) {
  return mode == DropMode::kInverted ? "inverted" : mode == DropMode::kClassic ? "classic" : "alpha";
}

// What becomes of a tensor's values; ValueError unless 0 <= p <= 1 and the mode is known.
inline DropRate check_dropout(double p, std::string_view mode) {
  check_probability(p);
  return DropRate::make(p, check_drop_mode(mode));
}

// RuntimeError unless rng_state is an int64 tensor of two elements on grad's device.
inline void check_rng_state(const at::Tensor& rng_state, const at::Tensor& grad) {
  check_device(rng_state, grad, "rng_state");
  TORCH_CHECK(rng_state.dim() == 1 && rng_state.sym_size(0) == 2 && rng_state.scalar_type() == at::kLong,
              "rng_state takes an int64 tensor of two elements, seed and offset");
}

}  // namespace fusedtricks

// What torch's autocast lists say of the functions that our operators are composed of: which it computes in float32.
// It leaves the others in the type they come in, but for products, see drop_connect.cpp.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

namespace fusedtricks {

inline bool autocasts_to_float32(std::string_view function, at::DeviceType device) {
  if (device == at::kCUDA) return function == "softplus";
  return device == at::kCPU && function == "fractional_max_pool";
}

// t as a function takes it under autocast.
inline at::Tensor autocast_for(std::string_view function, const at::Tensor& t) {
  const auto device = t.device().type();
  return autocasts_to_float32(function, device) ? at::autocast::cached_cast(at::kFloat, t, device) : t;
}
inline std::optional<at::Tensor> autocast_for(std::string_view function, const std::optional<at::Tensor>& t) {
  return t ? std::optional<at::Tensor>(autocast_for(function, *t)) : t;
}

}  // namespace fusedtricks

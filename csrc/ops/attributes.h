// The values in what nodes of autograd record besides tensors, one after another.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "core/activation_functions.h"
#include "core/drop_rate.h"

namespace fusedtricks {

// Calls f for each number, flag and dtype in the attributes: two calls of an operator that differ in any of them must
// differ here. A struct of them lists its members in values(), as a tuple.
template <class F>
void for_each_attribute(const F& f, const Activation& act) {
  f(std::string(act.info().name));
  for (int i = 0; i < act.info().parameter_count(); ++i) f(act.parameters[i]);
}
template <class F>
void for_each_attribute(const F& f, const DropMode& mode) {
  f(int64_t(mode));
}
template <class F>
void for_each_attribute(const F& f, const c10::SymInt& size) {
  f(size.guard_int(__FILE__, __LINE__));
}
template <class F, class T>
void for_each_attribute(const F& f, const std::vector<T>& values) {
  f(int64_t(values.size()));
  for (const T& value : values) for_each_attribute(f, value);
}
template <class F, class T>
void for_each_attribute(const F& f, const std::optional<T>& value) {
  f(value.has_value());
  if (value) for_each_attribute(f, *value);
}
template <class F, class T>
void for_each_attribute(const F& f, const T& value) {
  if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, at::ScalarType>) {
    f(value);
  } else {
    std::apply([&](const auto&... member) { (for_each_attribute(f, member), ...); }, value.values());
  }
}

}  // namespace fusedtricks

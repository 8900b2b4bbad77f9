// What the operators' autograd functions share.
#pragma once

#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/old_ops.h"

namespace fusedtricks::autograd {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class T>
using Function = torch::autograd::Function<T>;

inline Tensor or_undefined(const OptionalTensor& t) { return t ? *t : Tensor(); }
inline OptionalTensor or_none(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

inline bool requires_grad(const Tensor& t) { return t.requires_grad(); }
inline bool requires_grad(const OptionalTensor& t) { return t && t->requires_grad(); }

// Whether a call with these inputs must be recorded.
template <class... T>
bool records(const T&... inputs) {
  return at::GradMode::is_enabled() && (requires_grad(inputs) || ...);
}

// For a tensor that a kernel has written to: whoever kept it for a backward must notice.
inline void bump_version(const Tensor& t) {
  if (t.defined() && !t.is_inference()) torch::autograd::impl::bump_version(t);
}

// Attributes are kept on the context as one object.
template <class T>
struct Attributes : torch::CustomClassHolder {
  T value;
  explicit Attributes(T v) : value(std::move(v)) {}
};

template <class T>
void keep(AutogradContext* ctx, T attributes) {
  ctx->saved_data["attributes"] = c10::IValue::make_capsule(c10::make_intrusive<Attributes<T>>(std::move(attributes)));
}

template <class T>
T kept(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<Attributes<T>>(ctx->saved_data["attributes"].toCapsule())->value;
}

// For an autocast kernel, which calls the operator again below autocast.
inline c10::impl::ExcludeDispatchKeyGuard without_autocast() {
  return c10::impl::ExcludeDispatchKeyGuard(
      c10::DispatchKeySet({c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA}));
}

// A tensor and what is added to it in the wider of their dtypes, which stock's sum would have.
inline std::pair<Tensor, OptionalTensor> to_wider(const Tensor& t, const OptionalTensor& added) {
  if (!added) return {t, added};
  const auto type = c10::promoteTypes(t.scalar_type(), added->scalar_type());
  return {t.to(type), added->to(type)};
}

// An activation by name, as operators take it.
struct NamedActivation {
  std::string name;
  std::vector<double> arguments;

  Activation resolve() const { return check_activation(name, arguments); }
};

}  // namespace fusedtricks::autograd

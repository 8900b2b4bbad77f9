// Activations of whole packs: one chosen when the kernel is compiled, or any of the list while it runs.
#pragma once

#include "core/activation_functions.h"
#include "cuda/device/platform.cuh"

namespace fusedtricks::cuda {

// Compiled for this activation alone.
template <class Act>
struct FixedActivation {
  static constexpr bool is_fixed = true;

  Act act;

  template <class F>
  __device__ __forceinline__ void visit(const F& f) const {
    f(act);
  }
};

// Chosen once a pack. Serves all that are too rare to be worth kernels of their own.
template <class V>
struct AnyActivation {
  static constexpr bool is_fixed = false;

  Activation activation;

  template <class F>
  __device__ __forceinline__ void visit(const F& f) const {
    activation.visit<V>(f);
  }
};

// Calls f with the activation as a FixedActivation or AnyActivation. Each kind that it may be costs a kernel of every
// dtype and layout, so these are the ones of most networks; double has none, nor what is not may_be_fixed.
template <class V, bool may_be_fixed = true, class F>
void with_activation(const Activation& activation, const F& f) {
  if constexpr (may_be_fixed && std::is_same_v<V, float>) {
    const std::string_view name = activation.info().name;
    if (name == Identity<V>::info.name) return f(FixedActivation<Identity<V>>{Identity<V>(activation.parameters)});
    if (name == ReLU<V>::info.name) return f(FixedActivation<ReLU<V>>{ReLU<V>(activation.parameters)});
    if (name == LeakyReLU<V>::info.name) return f(FixedActivation<LeakyReLU<V>>{LeakyReLU<V>(activation.parameters)});
  }
  f(AnyActivation<V>{activation});
}

// z = act(z).
template <class Act, class V, int n>
__device__ __forceinline__ void activate(const Act& activation, V (&z)[n]) {
  activation.visit([&](const auto& act) {
#pragma unroll
    for (int e = 0; e < n; ++e) z[e] = act.forward(z[e]);
  });
}

// dy = dy act'(z).
template <class Act, class V, int n>
__device__ __forceinline__ void multiply_by_derivative(const Act& activation, V (&dy)[n], const V (&z)[n]) {
  activation.visit([&](const auto& act) {
#pragma unroll
    for (int e = 0; e < n; ++e) dy[e] *= act.grad(z[e], act.forward(z[e]));
  });
}

// The same from y = act(z), for an activation that keeps its result.
template <class Act, class V, int n>
__device__ __forceinline__ void multiply_by_derivative_of_result(const Act& activation, V (&dy)[n], const V (&y)[n]) {
  activation.visit([&](const auto& act) {
#pragma unroll
    for (int e = 0; e < n; ++e) dy[e] *= act.grad(y[e], y[e]);
  });
}

}  // namespace fusedtricks::cuda

// Activations of whole packs. A kernel is compiled for one activation, or takes any of the list at run time.
#pragma once

#include "core/activation_functions.h"
#include "cuda/device/platform.cuh"

namespace fusedtricks::cuda {

// For kernels that are compiled for this activation alone.
template <class Act>
struct FixedActivation {
  static constexpr bool is_fixed = true;

  Act act;

  template <class F>
  __device__ __forceinline__ void visit(const F& f) const {
    f(act);
  }
};

// For kernels that serve every activation: they choose it anew for each pack.
template <class V>
struct AnyActivation {
  static constexpr bool is_fixed = false;

  Activation activation;

  template <class F>
  __device__ __forceinline__ void visit(const F& f) const {
    activation.visit<V>(f);
  }
};

// Calls f(FixedActivation or AnyActivation). Every fixed activation costs one more kernel for each dtype and layout, so
// only those that most networks use are fixed, and none in double. may_be_fixed = false: never fixed.
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

// dy = dy * act'(z).
template <class Act, class V, int n>
__device__ __forceinline__ void multiply_by_derivative(const Act& activation, V (&dy)[n], const V (&z)[n]) {
  activation.visit([&](const auto& act) {
#pragma unroll
    for (int e = 0; e < n; ++e) dy[e] *= act.grad(z[e], act.forward(z[e]));
  });
}

// The same, given y = act(z) of an activation that keeps its result.
template <class Act, class V, int n>
__device__ __forceinline__ void multiply_by_derivative_of_result(const Act& activation, V (&dy)[n], const V (&y)[n]) {
  activation.visit([&](const auto& act) {
#pragma unroll
    for (int e = 0; e < n; ++e) dy[e] *= act.grad(y[e], y[e]);
  });
}

}  // namespace fusedtricks::cuda

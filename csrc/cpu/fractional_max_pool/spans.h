// The activation loops of fractional max-pooling, between the compute type and T. The activations that it takes are
// monotone and so keep their result; others have no loop here.
#pragma once

#include "cpu/activation_spans.h"

namespace fusedtricks::cpu {

// y = act(z).
template <class T>
using ResultSpan = void (*)(const OpMath<T>* z, T* y, int64_t n, const Activation&);

template <class T, class Act>
void apply_activation(const OpMath<T>* z, T* y, int64_t n, const Activation& activation) {
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<T>(act.forward(z[i]));
}

template <class T>
ResultSpan<T> result_span(const Activation& activation) {
  if constexpr (std::is_same_v<T, OpMath<T>>) {
    return activation_span<T>(activation);
  } else {
    ResultSpan<T> span = nullptr;
    activation.visit<OpMath<T>>([&](auto act) {
      if constexpr (decltype(act)::may_keep_result) span = apply_activation<T, decltype(act)>;
    });
    return span;
  }
}

// dz = dy * act', read off the result y. The identity does not read y.
template <class T>
using GradientSpan = void (*)(const T* dy, const T* y, OpMath<T>* dz, int64_t n, const Activation&);

template <class T, class Act>
void apply_derivative(const T* dy, const T* y, OpMath<T>* dz, int64_t n, const Activation& activation) {
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dz[i] = load(dy[i]) * act.grad(load(y[i]), load(y[i]));
}

template <class T>
void widen(const T* dy, const T*, OpMath<T>* dz, int64_t n, const Activation&) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dz[i] = load(dy[i]);
}

template <class T>
GradientSpan<T> gradient_span(const Activation& activation) {
  if (activation.is_identity()) return widen<T>;
  if constexpr (std::is_same_v<T, OpMath<T>>) {
    return derivative_span<T>(activation);
  } else {
    GradientSpan<T> span = nullptr;
    activation.visit<OpMath<T>>([&](auto act) {
      if constexpr (decltype(act)::may_keep_result) span = apply_derivative<T, decltype(act)>;
    });
    return span;
  }
}

}  // namespace fusedtricks::cpu

// Loops over neighbouring elements for one activation.
#pragma once

#include "core/activation_functions.h"
#include "core/scalar.h"

namespace fusedtricks::cpu {

// y = act(x); they may be the same memory.
template <class T>
using ActivationSpan = void (*)(const T* x, T* y, int64_t n, const Activation&);

template <class T, class Act>
void apply_activation(const T* x, T* y, int64_t n, const Activation& activation) {
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<T>(act.forward(load(x[i])));
}

template <class T>
ActivationSpan<T> activation_span(const Activation& activation) {
  ActivationSpan<T> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) { span = apply_activation<T, decltype(act)>; });
  return span;
}

// dx = dy * act', at x or read off the result: whichever `kept` is.
template <class T, class Kept>
using DerivativeSpan = void (*)(const T* dy, const Kept* kept, T* dx, int64_t n, const Activation&);

template <class T, class Kept, class Act>
void apply_derivative(const T* dy, const Kept* kept, T* dx, int64_t n, const Activation& activation) {
  const Act act(activation.parameters);
  if (act.keeps_result()) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const OpMath<T> y = load(kept[i]);
      dx[i] = store<T>(load(dy[i]) * act.grad(y, y));
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const OpMath<T> x = load(kept[i]);
      dx[i] = store<T>(load(dy[i]) * act.grad(x, act.forward(x)));
    }
  }
}

template <class T, class Kept>
DerivativeSpan<T, Kept> derivative_span(const Activation& activation) {
  DerivativeSpan<T, Kept> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) { span = apply_derivative<T, Kept, decltype(act)>; });
  return span;
}

}  // namespace fusedtricks::cpu

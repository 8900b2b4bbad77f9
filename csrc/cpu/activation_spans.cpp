#include "cpu/activation_spans.h"

#include "core/dtypes.h"

namespace fusedtricks::cpu {
namespace {

template <class T, class Act>
void apply_activation(const T* x, T* y, int64_t n, const Activation& activation) {
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<T>(act.forward(load(x[i])));
}

template <class T, class Act>
void apply_derivative(const T* dy, const T* kept, T* dx, int64_t n, const Activation& activation) {
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

template <class T, class Act>
void apply_derivative_at(const T* dy, const OpMath<T>* z, T* dz, int64_t n, const Activation& activation) {
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dz[i] = store<T>(load(dy[i]) * act.grad(z[i], act.forward(z[i])));
}

}  // namespace

template <class T>
ActivationSpan<T> activation_span(const Activation& activation) {
  ActivationSpan<T> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) { span = apply_activation<T, decltype(act)>; });
  return span;
}

template <class T>
DerivativeSpan<T> derivative_span(const Activation& activation) {
  DerivativeSpan<T> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) { span = apply_derivative<T, decltype(act)>; });
  return span;
}

template <class T>
DerivativeAtSpan<T> derivative_at_span(const Activation& activation) {
  DerivativeAtSpan<T> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) { span = apply_derivative_at<T, decltype(act)>; });
  return span;
}

#define FT_INSTANTIATE(name, T)                                  \
  template ActivationSpan<T> activation_span(const Activation&); \
  template DerivativeSpan<T> derivative_span(const Activation&); \
  template DerivativeAtSpan<T> derivative_at_span(const Activation&);
FT_FOR_EACH_DTYPE(FT_INSTANTIATE)

}  // namespace fusedtricks::cpu

// The activations alone: one pass forward, one backward, in memory order whatever the strides.
#include "activation.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../checks.h"
#include "dispatch.h"
#include "memory.h"

namespace fusedtricks::cpu {
namespace {

using at::Tensor;

constexpr int64_t kSpan = 16384;                  // elements of a task
constexpr int64_t kStreamResultBytes = 32 << 20;  // the backward may still find a smaller result in the caches

template <class T, class Act>
void forward(const T* x, T* y, int64_t n, const Activation& activation) {
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<T>(act.forward(load(x[i])));
}

template <class T, class Act>
void slope(const T* grad, const T* kept, T* out, int64_t n, const Activation& activation) {
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Compute<T> s = load(kept[i]);
    out[i] = store<T>(load(grad[i]) * act.grad_slope(s, act.keeps_result() ? s : act.forward(s)));
  }
}

// Calls span(first, destination, count) for all n elements of out.
template <class T, class Span>
void for_spans(T* out, int64_t n, bool stream, const Span& span) {
  parallel_tasks((n + kSpan - 1) / kSpan, [&](int64_t task) {
    const int64_t first = task * kSpan;
    emit(out + first, std::min(kSpan, n - first), stream,
         [&](T* to, int64_t i, int64_t count) { span(first + i, to, count); });
    if (stream) stream_fence();
  });
}

void apply(const Tensor& x, const Tensor& y, const Activation& activation) {
  visit_dtype(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    void (*span)(const T*, T*, int64_t, const Activation&) = nullptr;
    activation.visit<Compute<T>>([&](auto act) { span = forward<T, decltype(act)>; });
    const T* in = static_cast<const T*>(x.const_data_ptr());
    T* out = static_cast<T*>(y.data_ptr());
    const bool stream = in != out && worth_streaming(x.numel(), sizeof(T), kStreamResultBytes);
    for_spans(out, x.numel(), stream, [&](int64_t i, T* to, int64_t count) { span(in + i, to, count, activation); });
  });
}

// t itself where it is dense with model's strides, else a copy that is.
Tensor with_strides_of(const Tensor& t, const Tensor& model) {
  return t.strides() == model.strides() ? t : at::empty_like(model, t.options()).copy_(t);
}

Tensor activation(const Tensor& input, c10::string_view act, at::ArrayRef<double> act_args) {
  const Activation activation = check_activation(act, act_args);
  check_floating(input, "activation", "input");
  const Tensor y = at::empty_like(input);
  if (input.numel()) apply(with_strides_of(input, y), y, activation);
  return y;
}

void activation_inplace(const Tensor& input, c10::string_view act, at::ArrayRef<double> act_args) {
  const Activation activation = check_activation(act, act_args);
  check_floating(input, "activation", "input");
  at::assert_no_internal_overlap(input);
  if (!input.numel()) return;
  if (input.is_non_overlapping_and_dense()) return apply(input, input, activation);
  const Tensor y = at::empty_like(input).copy_(input);
  apply(y, y, activation);
  input.copy_(y);
}

// out = grad * f(kept), where choose(activation) gives the loop for it.
template <class Choose>
Tensor multiply(const Tensor& grad, const Tensor& kept, c10::string_view act, at::ArrayRef<double> act_args,
                const Choose& choose) {
  const Activation activation = check_activation(act, act_args);
  check_floating(kept, "activation_backward", "saved");
  check_like(grad, kept, "grad_output", "saved");
  const Tensor out = at::empty_like(kept);
  if (!kept.numel()) return out;
  const Tensor g = with_strides_of(grad, out), k = with_strides_of(kept, out);
  visit_dtype(kept.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const DerivativeSpan<T, T> span = choose(type, activation);
    const T *gp = static_cast<const T*>(g.const_data_ptr()), *kp = static_cast<const T*>(k.const_data_ptr());
    for_spans(static_cast<T*>(out.data_ptr()), out.numel(), worth_streaming(out.numel(), sizeof(T), kStreamResultBytes),
              [&](int64_t i, T* to, int64_t count) { span(gp + i, kp + i, to, count, activation); });
  });
  return out;
}

Tensor activation_backward(const Tensor& grad_output, const Tensor& saved, c10::string_view act,
                           at::ArrayRef<double> act_args) {
  return multiply(grad_output, saved, act, act_args, [](auto type, const Activation& activation) {
    using T = typename decltype(type)::type;
    return derivative_span<T, T>(activation);
  });
}

Tensor activation_backward_slope(const Tensor& grad, const Tensor& saved, c10::string_view act,
                                 at::ArrayRef<double> act_args) {
  return multiply(grad, saved, act, act_args, [](auto type, const Activation& activation) {
    using T = typename decltype(type)::type;
    DerivativeSpan<T, T> span = nullptr;
    activation.visit<Compute<T>>([&](auto act) { span = slope<T, decltype(act)>; });
    return span;
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, CPU, m) {
  m.impl("activation", activation);
  m.impl("activation_", activation_inplace);
  m.impl("activation_backward", activation_backward);
  m.impl("activation_backward_slope", activation_backward_slope);
}

}  // namespace fusedtricks::cpu

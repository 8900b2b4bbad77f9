// The activations alone, over elements in the order of memory.
#include "calls/activation.h"

#include "cpu/activation_spans.h"
#include "cpu/parallel_tasks.h"
#include "cpu/simd/streams.h"

namespace fusedtricks::cpu {
namespace {

constexpr int64_t kSpan = 16384;                  // elements of a task
constexpr int64_t kStreamResultBytes = 32 << 20;  // the backward may still find smaller results in the caches

template <class T, class Act>
void apply_grad_grad(const T* grad, const T* kept, T* out, int64_t n, const Activation& activation) {
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const OpMath<T> s = load(kept[i]);
    out[i] = store<T>(load(grad[i]) * act.grad_grad(s, act.keeps_result() ? s : act.forward(s)));
  }
}

template <class T>
DerivativeSpan<T> grad_grad_span(const Activation& activation) {
  DerivativeSpan<T> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) { span = apply_grad_grad<T, decltype(act)>; });
  return span;
}

// Writes out[0, n) by calls of span(first, to, count), as emit() does, shared out over threads.
template <class T, class Span>
void for_spans(T* out, int64_t n, bool stream, const Span& span) {
  parallel_tasks((n + kSpan - 1) / kSpan, [&](int64_t task) {
    const int64_t first = task * kSpan;
    emit(out + first, std::min(kSpan, n - first), stream,
         [&](T* to, int64_t i, int64_t count) { span(first + i, to, count); });
    if (stream) stream_fence();
  });
}

template <class T>
void run(DerivativeSpan<T> span, const ActivationCall& call, const void* grad, const void* kept, void* out) {
  const T *g = static_cast<const T*>(grad), *k = static_cast<const T*>(kept);
  for_spans(static_cast<T*>(out), call.n, worth_streaming(call.n, sizeof(T), kStreamResultBytes),
            [&](int64_t i, T* to, int64_t count) { span(g + i, k + i, to, count, call.act); });
}

void activation_forward(const ActivationCall& call, const void* x, void* y) {
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto span = activation_span<T>(call.act);
    const T* in = static_cast<const T*>(x);
    const bool stream = x != y && worth_streaming(call.n, sizeof(T), kStreamResultBytes);
    for_spans(static_cast<T*>(y), call.n, stream,
              [&](int64_t i, T* to, int64_t count) { span(in + i, to, count, call.act); });
  });
}

void activation_backward(const ActivationCall& call, const void* dy, const void* kept, void* dx) {
  visit_dtype(call.dtype,
              [&](auto type) { run(derivative_span<typename decltype(type)::type>(call.act), call, dy, kept, dx); });
}

void activation_grad_grad(const ActivationCall& call, const void* g, const void* kept, void* out) {
  visit_dtype(call.dtype,
              [&](auto type) { run(grad_grad_span<typename decltype(type)::type>(call.act), call, g, kept, out); });
}

const Provided provided[] = {
    {kernels::activation_forward, activation_forward},
    {kernels::activation_backward, activation_backward},
    {kernels::activation_grad_grad, activation_grad_grad},
};

}  // namespace
}  // namespace fusedtricks::cpu

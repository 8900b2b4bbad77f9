// batch_norm_act forward: one sweep for the statistics, one for y = act((x - mean) * rstd * weight + bias [+
// residual]).
#include "batch_norm_statistics.h"

namespace fusedtricks::cpu {
namespace {

template <class T>
void forward_planes(const BatchNormForward& a) {
  using V = Compute<T>;
  const auto one = normalize_span<T, OneChannel<V>>(a.act, a.residual);
  const auto many = normalize_span<T, ManyChannels<V>>(a.act, a.residual);
  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  const PlanesPlan plan(a.layout);
  const bool stream = worth_streaming(plan.layout.per_channel() * plan.layout.channels, sizeof(T));
  for_normalized_planes<T>(a, plan, [&](int64_t task, const Coefficients<V>& coefficients) {
    const auto with = [&](auto span_of) {
      return [&, span_of](T* to, int64_t i, RowSpan span, auto channels) {
        span_of(x + i, residual ? residual + i : nullptr, to, span, channels, a.act);
      };
    };
    write_planes(plan, y, task, stream, coefficients, {x, residual}, with(one), with(many));
  });
}

template <class T>
void forward_rows(const BatchNormForward& a) {
  using V = Compute<T>;
  const auto normalize = normalize_span<T, ManyChannels<V>>(a.act, a.residual);
  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  const RowsPlan plan(a.layout, sizeof(T));
  const Coefficients<V> coefficients = row_coefficients<T>(a, plan);
  for_blocks(plan, true, [&](const Block& b) {
    touch_block(plan, x, b);
    if (residual) touch_block(plan, residual, b);
    write_block(plan, y, b, [&](T* to, int64_t i, int64_t c, RowSpan span) {
      normalize(x + i, residual ? residual + i : nullptr, to, span, coefficients.many().from(c), a.act);
    });
  });
}

}  // namespace
}  // namespace fusedtricks::cpu

int64_t fusedtricks::backend::batch_norm_forward_workspace(const BatchNormForward&) { return 0; }

void fusedtricks::backend::batch_norm_forward(const BatchNormForward& a) {
  a.count_batch();
  visit_dtype(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (a.layout.rows)
      cpu::forward_rows<T>(a);
    else
      cpu::forward_planes<T>(a);
  });
}

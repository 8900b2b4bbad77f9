// Defines what spans.h declares about normalising. Included by the two sources that compile it: these are the most
// loops, and each takes a few seconds.
#pragma once

#include "core/dtypes.h"
#include "cpu/batch_norm/loops.h"

namespace fusedtricks::cpu {

template <class T, class Channels>
NormalizeSpan<T, Channels> normalize_span(const Activation& activation, bool has_residual) {
  NormalizeSpan<T, Channels> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) {
    using Act = decltype(act);
    span = has_residual ? normalize<T, T, Channels, Act, true> : normalize<T, T, Channels, Act, false>;
  });
  return span;
}

template <class T, class Channels>
void normalize_unrounded(const T* x, const T* residual, OpMath<T>* z, RowSpan span, Channels channels) {
  using V = OpMath<T>;
  const auto loop =
      residual ? normalize<T, V, Channels, Identity<V>, true> : normalize<T, V, Channels, Identity<V>, false>;
  loop(x, residual, z, span, channels, {});
}

#define FT_INSTANTIATE_NORMALIZE(T, Channels)                                               \
  template NormalizeSpan<T, Channels> normalize_span<T, Channels>(const Activation&, bool); \
  template void normalize_unrounded<T, Channels>(const T*, const T*, OpMath<T>*, RowSpan, Channels);

}  // namespace fusedtricks::cpu

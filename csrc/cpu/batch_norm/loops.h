// The loops of BatchNorm that are compiled for every activation, for planes and rows alike: Channels says whether
// neighbouring elements belong to one channel (OneChannel) or each to another (ManyChannels). The sweeps call them
// through pointers, once per run or row; see spans.h. Include this only to compile them.
#pragma once

#include "cpu/batch_norm/lane_sums.h"
#include "cpu/batch_norm/spans.h"

namespace fusedtricks::cpu {

// z = (x - shift) * scale + offset [+ residual], y = act(z).
template <class T, class Out, class Channels, class Act, bool has_residual>
void normalize(const T* x, const T* residual, Out* y, RowSpan span, Channels channels, const Activation& activation) {
  using V = OpMath<T>;
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < span.n; ++i) {
    const V shift = channels.template get<kShift>(i), scale = channels.template get<kScale>(i),
            offset = channels.template get<kOffset>(i);
#pragma GCC unroll 4
    for (int r = 0; r < Channels::tile_rows; ++r) {
      V z = (load(x[r * span.in_stride + i]) - shift) * scale + offset;
      if (has_residual) z += load(residual[r * span.in_stride + i]);
      y[r * span.out_stride + i] = store<Out>(act.forward(z));
    }
  }
}

// z, unrounded, of one row of n elements behind a residual.
template <class T, class Channels>
void normalize_row(const T* x, const T* residual, OpMath<T>* z, int64_t n, Channels channels) {
  using V = OpMath<T>;
  normalize<T, V, Channels, Identity<V>, true>(x, residual, z, RowSpan{n, 0, 0}, channels, {});
}

// Adds dz and dz * xhat, where xhat = (x - shift) * rstd and dz = dy * act'(z) with z computed again from x.
template <class T, class Channels, class Act>
void add_gradients(const T* dy, const T* x, Runs runs, Channels channels, const Activation& activation,
                   Lanes<Channels>& sums) {
  using V = OpMath<T>;
  const Act act(activation.parameters);
  add_runs<Channels, Write::kNo, T>(x, dy, nullptr, runs, sums, [=](int64_t i, int64_t j) {
    const V d = load(x[i]) - channels.template get<kShift>(j);
    const V z = d * channels.template get<kScale>(j) + channels.template get<kOffset>(j);
    const V dz = load(dy[i]) * act.grad(z, act.forward(z));
    return std::pair<V, V>(dz, dz * (d * channels.template get<kRstd>(j)));
  });
}

// The same for an activation behind a residual, where dz is read off the output: it is also written, and added up as it
// was rounded.
template <Write write, class T, class Channels, class Act>
void add_residual_gradients(const T* dy, const T* output, const T* x, T* dz, Runs runs, Channels channels,
                            const Activation& activation, Lanes<Channels>& sums) {
  using V = OpMath<T>;
  const Act act(activation.parameters);
  add_runs<Channels, write>(x, dy, dz, runs, sums, [=](int64_t i, int64_t j) {
    const V y = load(output[i]), dz_i = rounded<T>(load(dy[i]) * act.grad(y, y));
    const V d = load(x[i]) - channels.template get<kShift>(j);
    return std::pair<V, V>(dz_i, dz_i * (d * channels.template get<kRstd>(j)));
  });
}

// dx = dz * scale + xhat * slope + constant, with dz as in add_gradients times dz_scale.
template <class T, class Channels, class Act, class Gradient = T>
void differentiate(const Gradient* dy, const T* x, T* dx, RowSpan span, Channels channels, OpMath<T> dz_scale,
                   const Activation& activation) {
  using V = OpMath<T>;
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < span.n; ++i) {
    const V shift = channels.template get<kShift>(i), scale = channels.template get<kScale>(i),
            offset = channels.template get<kOffset>(i), rstd = channels.template get<kRstd>(i),
            slope = channels.template get<kSlope>(i), constant = channels.template get<kConstant>(i),
            scale_of_dz = scale * dz_scale;
#pragma GCC unroll 4
    for (int r = 0; r < Channels::tile_rows; ++r) {
      const V d = load(x[r * span.in_stride + i]) - shift, z = d * scale + offset;
      const V dz = load(dy[r * span.in_stride + i]) * act.grad(z, act.forward(z));
      dx[r * span.out_stride + i] =
          store<T>(dz * scale_of_dz + BackwardCoefficients<V>::of_statistics(d * rstd, slope, constant));
    }
  }
}

}  // namespace fusedtricks::cpu

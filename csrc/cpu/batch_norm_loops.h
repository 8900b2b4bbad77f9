// The inner loops of BatchNorm, for planes and rows alike: Channels says whether neighbouring elements belong to one
// channel or each to its own.
//
// They take their pointers as arguments and call functions of values only: with captured pointers the compiler must
// assume that every store changes them, and does not vectorise. What depends on the activation is called through a
// pointer, once a run: only these loops are compiled for every activation, not the sweeps around them.
#pragma once

#include <cstring>

#include "activation.h"
#include "batch_norm.h"

namespace fusedtricks::cpu {

// Two sums of one sweep in `count` lanes: of e and of a product e * f.
template <class V, int count>
struct LaneSums {
  V sum[count] = {}, product[count] = {};

  double total_sum() const { return total(sum); }
  double total_product() const { return total(product); }

 private:
  static double total(const V* lanes) {
    double t = 0;
    for (int j = 0; j < count; ++j) t += lanes[j];
    return t;
  }
};

template <class Channels>
struct ValueOf;

template <template <class> class Channels, class V>
struct ValueOf<Channels<V>> {
  using type = V;
};

template <class Channels>
using Lanes = LaneSums<typename ValueOf<Channels>::type, Channels::lanes>;

// `rows` pieces of `width` neighbouring elements, `stride` apart; width at most Channels::lanes.
struct Pieces {
  int64_t rows, stride;
  int width;
};

// A run of n neighbouring elements as pieces: full ones, and the rest.
template <class Channels, class F>
void for_pieces(int64_t n, const F& f) {
  constexpr int lanes = Channels::lanes;
  const int64_t rows = n / lanes, done = rows * lanes;
  if (rows) f(int64_t(0), Pieces{rows, lanes, lanes});
  if (n > done) f(done, Pieces{1, 0, int(n - done)});
}

// Runs loop(width) with a compile-time width where it is a full one, on sums in registers.
template <class V, int count, class Loop>
void with_lanes(int width, LaneSums<V, count>& sums, const Loop& loop) {
  LaneSums<V, count> local = sums;
  if (width == count)
    loop(count, local.sum, local.product);
  else
    loop(width, local.sum, local.product);
  sums = local;
}

// Adds d = x - shift and d^2.
template <class T, class Channels>
void add_moments(const T* x, Pieces pieces, Channels channels, Lanes<Channels>& sums) {
  using V = Compute<T>;
  with_lanes(pieces.width, sums, [&](int width, V* sum, V* product) {
    for (int64_t r = 0; r < pieces.rows; ++r) {
      const T* row = x + r * pieces.stride;
#pragma omp simd
      for (int j = 0; j < width; ++j) {
        const V d = load(row[j]) - channels.template get<kShift>(j);
        sum[j] += d;
        product[j] += d * d;
      }
    }
  });
}

// Where the Channels::rows rows of a span lie, n elements each. A stride of 0 repeats one row.
struct RowSpan {
  int64_t n, in_stride, out_stride;
};

// y = act(z), z = (x - shift) * scale + offset [+ residual]. Rows share the loads of a channel's coefficients.
template <class T, class Out, class Channels, class Act, bool has_residual>
void normalize(const T* x, const T* residual, Out* y, RowSpan span, Channels channels, const Activation& activation) {
  using V = Compute<T>;
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < span.n; ++i) {
    const V shift = channels.template get<kShift>(i), scale = channels.template get<kScale>(i),
            offset = channels.template get<kOffset>(i);
#pragma GCC unroll 4
    for (int r = 0; r < Channels::rows; ++r) {
      V z = (load(x[r * span.in_stride + i]) - shift) * scale + offset;
      if (has_residual) z += load(residual[r * span.in_stride + i]);
      y[r * span.out_stride + i] = store<Out>(act.forward(z));
    }
  }
}

template <class T, class Channels>
using NormalizeSpan = void (*)(const T*, const T*, T*, RowSpan, Channels, const Activation&);

template <class T, class Channels>
NormalizeSpan<T, Channels> normalize_span(const Activation& activation, bool has_residual) {
  NormalizeSpan<T, Channels> span = nullptr;
  activation.visit<Compute<T>>([&](auto act) {
    using Act = decltype(act);
    span = has_residual ? normalize<T, T, Channels, Act, true> : normalize<T, T, Channels, Act, false>;
  });
  return span;
}

// Adds dz and dz * xhat, xhat = (x - shift) * rstd; dz is dy times the activation's derivative at z, recomputed from x.
template <class T, class Channels, class Act>
void add_gradients(const T* dy, const T* x, Pieces pieces, Channels channels, const Activation& activation,
                   Lanes<Channels>& sums) {
  using V = Compute<T>;
  const Act act(activation.parameters);
  with_lanes(pieces.width, sums, [&](int width, V* sum, V* product) {
    for (int64_t r = 0; r < pieces.rows; ++r) {
      const T *dy_row = dy + r * pieces.stride, *x_row = x + r * pieces.stride;
#pragma omp simd
      for (int j = 0; j < width; ++j) {
        const V d = load(x_row[j]) - channels.template get<kShift>(j);
        const V z = d * channels.template get<kScale>(j) + channels.template get<kOffset>(j);
        const V dz = load(dy_row[j]) * act.grad(z, act.forward(z));
        sum[j] += dz;
        product[j] += dz * (d * channels.template get<kRstd>(j));
      }
    }
  });
}

// dx = dz * scale + (x - shift) * rstd * slope + constant, with dz as above.
template <class T, class Channels, class Act>
void differentiate(const T* dy, const T* x, T* dx, RowSpan span, Channels channels, const Activation& activation) {
  using V = Compute<T>;
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < span.n; ++i) {
    const V shift = channels.template get<kShift>(i), scale = channels.template get<kScale>(i),
            offset = channels.template get<kOffset>(i), rstd = channels.template get<kRstd>(i),
            slope = channels.template get<kSlope>(i), constant = channels.template get<kConstant>(i);
#pragma GCC unroll 4
    for (int r = 0; r < Channels::rows; ++r) {
      const V d = load(x[r * span.in_stride + i]) - shift, z = d * scale + offset;
      const V dz = load(dy[r * span.in_stride + i]) * act.grad(z, act.forward(z));
      dx[r * span.out_stride + i] = store<T>(dz * scale + (d * rstd * slope + constant));
    }
  }
}

template <class T, class Channels>
struct BackwardSpans {
  void (*add_gradients)(const T*, const T*, Pieces, Channels, const Activation&, Lanes<Channels>&) = nullptr;
  void (*differentiate)(const T*, const T*, T*, RowSpan, Channels, const Activation&) = nullptr;

  explicit BackwardSpans(const Activation& activation) {
    activation.visit<Compute<T>>([&](auto act) {
      using Act = decltype(act);
      add_gradients = cpu::add_gradients<T, Channels, Act>;
      differentiate = cpu::differentiate<T, Channels, Act>;
    });
  }
};

// Mean and sum of squared deviations of count values, `stride` apart, in double whatever they are.
template <class T>
Moments exact_moments(const T* x, int64_t count, int64_t stride) {
  Moments m;
  double sum = 0, error = 0;
  for (int64_t i = 0; i < count; ++i) sum += double(load(x[i * stride]));
  m.count = double(count);
  m.mean = sum / m.count;
  for (int64_t i = 0; i < count; ++i) {
    const double d = double(load(x[i * stride])) - m.mean;
    m.m2 += d * d;
    error += d;
  }
  m.m2 -= error * error / m.count;
  return m;
}

}  // namespace fusedtricks::cpu

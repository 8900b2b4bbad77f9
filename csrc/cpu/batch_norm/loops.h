// The inner loops of BatchNorm, for planes and rows alike: Channels says whether neighbouring elements belong to one
// channel or each to its own.
//
// They take their pointers as arguments and call functions of values only: with captured pointers the compiler must
// assume that every store changes them, and does not vectorise. What depends on the activation is called through a
// pointer, once a run: only these loops are compiled for every activation, not the sweeps around them.
#pragma once

#include <cstring>
#include <utility>

#include "cpu/activation_loops.h"
#include "cpu/batch_norm/coefficients.h"
#include "cpu/simd/streams.h"

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

// Runs of n neighbouring elements, `stride` apart. Element j of a run goes to lane j % lanes; with a channel to each, n
// is at most the number of lanes.
struct Runs {
  int64_t count, stride, n;
};

// Asks for the start of n elements that will be read soon: runs of a plane begin in pages of their own, where the
// hardware does not look ahead.
template <class T>
FT_INLINE void prefetch(const T* x, int64_t n) {
  constexpr int64_t line = 64 / int64_t(sizeof(T)), most = 2048 / int64_t(sizeof(T));
  for (int64_t i = 0; i < std::min(n, most); i += line) __builtin_prefetch(x + i);
}

// How many runs lie between one and the one to ask for while it is read: about 4 KB.
template <class T>
FT_INLINE int64_t prefetch_distance(int64_t n) {
  return 1 + 4096 / int64_t(sizeof(T)) / n;
}

// Whether the first of an element's two terms, already rounded to T, is also written, and past the caches: then its
// addresses and the runs' stride are multiples of a vector.
enum class Write { kNo, kPlain, kStreamed };

template <Write write, int n, class T>
FT_INLINE void write_terms(T* to, const OpMath<T>* terms) {
  alignas(kCacheLine) T values[n];
#pragma omp simd
  for (int j = 0; j < n; ++j) values[j] = store_rounded<T>(terms[j]);
  if constexpr (write == Write::kStreamed)
    stream_vector<n * sizeof(T)>(to, values);
  else
    std::memcpy(to, values, sizeof(values));
}

// Adds terms(i, j), two numbers for the element at index i in lane j, over all runs of at least as many elements as
// there are lanes. The sums stay in registers: they are vectors by name, of as many lanes as T has in one, since the
// compiler leaves arrays in memory. What is left of a run over full rows is read as the end of one more, the rest of it
// masked.
template <bool has_rest, Write write, class T, class V, int lanes, class Terms>
FT_INLINE void add_long_runs(const T* x, const T* dy, T* out, const Runs& runs, LaneSums<V, lanes>& sums,
                             const Terms& terms) {
  using Index = typename ExpTraits<V>::Int;
  constexpr int width = std::min(kVectorSize / int(sizeof(T)), lanes), steps = lanes / width;
  constexpr int size = std::min(kVectorSize / int(sizeof(V)), lanes), vectors = lanes / size, per_step = width / size;
  typedef V Vector __attribute__((vector_size(size * sizeof(V))));
  Vector sum[vectors], product[vectors];
  std::memcpy(sum, sums.sum, sizeof(sum));
  std::memcpy(product, sums.product, sizeof(product));
  const int64_t full = runs.n / lanes, rows = has_rest ? (runs.n + lanes - 1) / lanes : full;
  for (int64_t run = 0; run < runs.count; ++run) {
    if (has_rest) {
      const int64_t later = (run + prefetch_distance<T>(runs.n)) * runs.stride;
      prefetch(x + later, runs.n);
      if (dy) prefetch(dy + later, runs.n);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const bool is_full = !has_rest || row < full;
      const int64_t first = run * runs.stride + (is_full ? row * lanes : runs.n - lanes);
      const Index done = is_full ? 0 : Index(rows * lanes - runs.n);
#pragma GCC unroll 8
      for (int step = 0; step < steps; ++step) {
        alignas(64) V e[width], f[width], all[width];
#pragma omp simd
        for (Index j = 0; j < width; ++j) {
          const auto term = terms(first + step * width + j, step * width + j);
          const bool counts = !has_rest || step * width + j >= done;
          if (write != Write::kNo) all[j] = term.first;
          e[j] = counts ? term.first : V(0);
          f[j] = counts ? term.second : V(0);
        }
        if constexpr (write != Write::kNo) write_terms<write, width>(out + first + step * width, all);
#pragma GCC unroll 8
        for (int v = 0; v < per_step; ++v) {
          Vector ve, vf;
          std::memcpy(&ve, e + v * size, sizeof(ve));
          std::memcpy(&vf, f + v * size, sizeof(vf));
          sum[step * per_step + v] += ve;
          product[step * per_step + v] += vf;
        }
      }
    }
  }
  std::memcpy(sums.sum, sum, sizeof(sum));
  std::memcpy(sums.product, product, sizeof(product));
}

template <class Channels, Write write, class T, class Terms>
FT_INLINE void add_runs(const T* x, const T* dy, T* out, const Runs& runs, Lanes<Channels>& sums, const Terms& terms) {
  constexpr bool has_rest = Channels::tile_rows == 1;  // runs of one channel are of any length
  if (runs.n >= Channels::lanes) return add_long_runs<has_rest, write>(x, dy, out, runs, sums, terms);
  for (int64_t run = 0; run < runs.count; ++run) {
#pragma omp simd
    for (int64_t j = 0; j < runs.n; ++j) {
      const auto term = terms(run * runs.stride + j, j);
      if (write != Write::kNo) out[run * runs.stride + j] = store_rounded<T>(term.first);
      sums.sum[j] += term.first;
      sums.product[j] += term.second;
    }
  }
}

// Adds d = x - shift and d^2.
template <class T, class Channels>
void add_moments(const T* x, Runs runs, Channels channels, Lanes<Channels>& sums) {
  using V = OpMath<T>;
  add_runs<Channels, Write::kNo, T>(x, nullptr, nullptr, runs, sums, [=](int64_t i, int64_t j) {
    const V d = load(x[i]) - channels.template get<kShift>(j);
    return std::pair<V, V>(d, d * d);
  });
}

// Where the Channels::tile_rows rows of a span lie, n elements each. A stride of 0 repeats one row.
struct RowSpan {
  int64_t n, in_stride, out_stride;
};

// y = act(z), z = (x - shift) * scale + offset [+ residual]. Rows share the loads of a channel's coefficients.
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

template <class T, class Channels>
using NormalizeSpan = void (*)(const T*, const T*, T*, RowSpan, Channels, const Activation&);

template <class T, class Channels>
NormalizeSpan<T, Channels> normalize_span(const Activation& activation, bool has_residual) {
  NormalizeSpan<T, Channels> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) {
    using Act = decltype(act);
    span = has_residual ? normalize<T, T, Channels, Act, true> : normalize<T, T, Channels, Act, false>;
  });
  return span;
}

// Adds dz and dz * xhat, xhat = (x - shift) * rstd; dz is dy times the activation's derivative at z, recomputed from x.
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

// dx = dz * scale + (x - shift) * rstd * slope + constant, with dz as above times dz_scale.
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

// The same where the activation came after a residual and its derivative is read off the output: dz is written as well,
// and added up as it was rounded.
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

template <class T, class Channels>
struct BackwardSpans {
  void (*add_gradients)(const T*, const T*, Runs, Channels, const Activation&, Lanes<Channels>&) = nullptr;
  void (*add_residual_gradients)(const T*, const T*, const T*, T*, Runs, Channels, const Activation&,
                                 Lanes<Channels>&) = nullptr;
  void (*differentiate)(const T*, const T*, T*, RowSpan, Channels, OpMath<T>, const Activation&) = nullptr;

  // For what leads from dz to z, and for what came after the residual: the identity and an activation, or one twice.
  BackwardSpans(const Activation& before, const Activation& after, bool streams_dz = false) {
    before.visit<OpMath<T>>([&](auto act) {
      using Act = decltype(act);
      add_gradients = cpu::add_gradients<T, Channels, Act>;
      differentiate = cpu::differentiate<T, Channels, Act>;
    });
    after.visit<OpMath<T>>([&](auto act) {
      using Act = decltype(act);
      constexpr Write streamed = Channels::tile_rows == 1 ? Write::kPlain : Write::kStreamed;
      add_residual_gradients = streams_dz ? cpu::add_residual_gradients<streamed, T, Channels, Act>
                                          : cpu::add_residual_gradients<Write::kPlain, T, Channels, Act>;
    });
  }
};

// Mean and sum of squared deviations of count values, `stride` apart, in double whatever they are.
template <class T>
Moments<double> exact_moments(const T* x, int64_t count, int64_t stride) {
  Moments<double> m;
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

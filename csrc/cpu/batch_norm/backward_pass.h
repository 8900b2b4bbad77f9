// What both sweeps of batch_norm_act's backward do with a span of elements.
#pragma once

#include "cpu/batch_norm/dropout_tiles.h"
#include "cpu/batch_norm/loops.h"

namespace fusedtricks::cpu {

struct Sums {
  double dz = 0, dz_xhat = 0;
};

// y = x * scale, also from one type to another.
template <class From, class To>
[[gnu::noinline]] void scale_span(const From* x, To* y, int64_t n, OpMath<To> scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<To>(load(x[i]) * scale);
}

// What the sweeps have to do. Both start from `start` and go through `act` to the gradient at the end of the batch
// norm: from dz and the identity where dz is written, otherwise from dy, behind dropout the masked one, and the
// activation.
template <class T>
struct Pass {
  using V = OpMath<T>;

  const BatchNormBackward& a;
  const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy);
  const T *output = static_cast<const T*>(a.output), *residual = static_cast<const T*>(a.residual);
  T *dx = static_cast<T*>(a.dx), *masked_dy = dx ? dx : static_cast<T*>(a.workspace);
  T* first_result = a.after_residual() ? static_cast<T*>(a.dz) : a.drops() ? masked_dy : nullptr;
  const T* start = first_result ? first_result : dy;
  const Activation act = a.after_residual() ? Activation{0, {}} : a.act;
  const bool needs_sums = a.needs_sums();
  DerivativeSpan<T> derivative_of_output = derivative_span<T>(a.act);
  DerivativeAtSpan<T> derivative_at_z = derivative_at_span<T>(a.act);
  DerivativeSpan<V> derivative_of_tile = derivative_span<V>(a.act);
  ActivationSpan<V> activate = activation_span<V>(a.act);
  const Mask mask{a.mask};
  const double scale_of_start = a.drops() && !a.after_residual() ? a.mask.rate.scale : 1;
  Coefficients<V> coefficients{a.layout.channels};

  explicit Pass(const BatchNormBackward& arguments) : a(arguments) {
    for (int64_t c = 0; c < a.layout.channels; ++c) {
      coefficients.set_forward(c, a.mean[c], a.rstd[c], a.weight.get_or(c, 1), a.bias.get_or(c, 0));
    }
  }

  bool sweeps_first() const { return needs_sums || first_result; }
  // Whether dx is written over what it is computed from.
  bool is_in_place() const { return dx && dx == first_result; }

  void finish_channel(int64_t c, Sums s) {
    s.dz *= scale_of_start;
    s.dz_xhat *= scale_of_start;
    const double dweight = coefficients.set_backward(c, s.dz, s.dz_xhat, a.mean[c], a.rstd[c], a.weight.get_or(c, 1),
                                                     double(a.layout.per_channel()), a.training);
    if (a.dweight) a.dweight.set(c, dweight);
    if (a.dbias) a.dbias.set(c, s.dz);
  }

  // dz is written while it is summed, or before: by write_dz, or behind dropout by write_dropped.
  bool writes_dz_in_sums() const { return output && a.act.keeps_result() && needs_sums && !a.drops(); }
  bool writes_dz_before_sums() const { return a.after_residual() && !writes_dz_in_sums() && !a.drops(); }

  // Writes dz for n neighbouring elements behind a residual.
  template <class Channels>
  void write_dz(int64_t first, int64_t n, Channels channels) const {
    if (output) return derivative_of_output(dy + first, output + first, first_result + first, n, a.act);
    for (int64_t i = 0; i < n; i += kTile) {
      V z[kTile];
      const int64_t count = std::min(kTile, n - i), at = first + i;
      normalize_row(x + at, residual + at, z, count, channels.from(i));
      derivative_at_z(dy + at, z, first_result + at, count, a.act);
    }
  }

  // The same behind dropout; without a residual only dy is masked.
  template <class Channels, class Dropper>
  void write_dropped(int64_t first, int64_t n, Channels channels, Dropper& dropper) const {
    if (!a.after_residual()) return dropper.drop(dy + first, first_result + first, n, first, V(1));
    for (int64_t i = 0; i < n; i += kTile) {
      V gradient[kTile], kept[kTile];
      const int64_t count = std::min(kTile, n - i), at = first + i;
      if (a.needs_mask())
        dropper.drop(dy + at, gradient, count, at, V(a.mask.rate.scale));
      else
        scale_span(dy + at, gradient, count, V(a.mask.rate.scale));
      fill_with_kept(at, count, channels.from(i), kept);
      derivative_of_tile(gradient, kept, gradient, count, a.act);
      scale_span(gradient, first_result + at, count, V(1));
    }
  }

  // What the activation's derivative is computed from: the output or, where it was not saved, z or the result at z.
  template <class Channels>
  void fill_with_kept(int64_t at, int64_t count, Channels channels, V* kept) const {
    if (output) return scale_span(output + at, kept, count, V(1));
    normalize_row(x + at, residual + at, kept, count, channels);
    if (a.act.keeps_result()) activate(kept, kept, count, a.act);
  }
};

// The loops of both sweeps, for one or many channels.
template <class T, class Channels>
struct BackwardSpans {
  const Pass<T>& pass;
  bool writes_dz = pass.writes_dz_in_sums();
  AddGradientsSpan<T, Channels> add_gradients = add_gradients_span<T, Channels>(pass.act);
  AddResidualGradientsSpan<T, Channels> add_residual_gradients;
  DifferentiateSpan<T, Channels> differentiate = differentiate_span<T, Channels>(pass.act);

  explicit BackwardSpans(const Pass<T>& p, bool streams_dz = false)
      : pass(p), add_residual_gradients(add_residual_gradients_span<T, Channels>(pass.a.act, streams_dz)) {}

  // Adds the runs that begin at an index.
  FT_INLINE void add(int64_t i, Runs runs, Channels channels, Lanes<Channels>& sums) const {
    if (!pass.needs_sums) return;
    if (!writes_dz) return add_gradients(pass.start + i, pass.x + i, runs, channels, pass.act, sums);
    add_residual_gradients(pass.dy + i, pass.output + i, pass.x + i, pass.first_result + i, runs, channels, pass.a.act,
                           sums);
  }

  FT_INLINE void write_dx(T* to, int64_t i, RowSpan span, Channels channels) const {
    differentiate(pass.start + i, pass.x + i, to, span, channels, OpMath<T>(pass.scale_of_start), pass.act);
  }
};

}  // namespace fusedtricks::cpu

// The loops of BatchNorm over the elements of a span, for an activation, a dtype and one or many channels; see loops.h
// for what they compute. Each is compiled once, in a source of its own beside this header.
#pragma once

#include "core/activation_functions.h"
#include "cpu/batch_norm/coefficients.h"
#include "cpu/batch_norm/lane_sums.h"

namespace fusedtricks::cpu {

// The Channels::tile_rows rows of a span, n elements each. A stride of 0 repeats one row.
struct RowSpan {
  int64_t n, in_stride, out_stride;
};

// y = act(z), z = batch_norm(x) [+ residual].
template <class T, class Channels>
using NormalizeSpan = void (*)(const T* x, const T* residual, T* y, RowSpan, Channels, const Activation&);

template <class T, class Channels>
NormalizeSpan<T, Channels> normalize_span(const Activation&, bool has_residual);

// z itself, unrounded. residual may be null.
template <class T, class Channels>
void normalize_unrounded(const T* x, const T* residual, OpMath<T>* z, RowSpan, Channels);

// Adds the sums over dz = dy * act'(z) without a residual.
template <class T, class Channels>
using AddGradientsSpan = void (*)(const T* dy, const T* x, Runs, Channels, const Activation&, Lanes<Channels>&);

template <class T, class Channels>
AddGradientsSpan<T, Channels> add_gradients_span(const Activation&);

// Adds the same sums where dz = dy * act' is read off the output of an activation that keeps its result, and writes dz.
template <class T, class Channels>
using AddResidualGradientsSpan = void (*)(const T* dy, const T* output, const T* x, T* dz, Runs, Channels,
                                          const Activation&, Lanes<Channels>&);

// Null for activations that never keep their result. streamed: dz is written past the caches; not for OneChannel.
template <class T, class Channels>
AddResidualGradientsSpan<T, Channels> add_residual_gradients_span(const Activation&, bool streamed);

// dx, from dy times dz_scale.
template <class T, class Channels, class Gradient = T>
using DifferentiateSpan = void (*)(const Gradient* dy, const T* x, T* dx, RowSpan, Channels, OpMath<T> dz_scale,
                                   const Activation&);

template <class T, class Channels>
DifferentiateSpan<T, Channels> differentiate_span(const Activation&);

}  // namespace fusedtricks::cpu

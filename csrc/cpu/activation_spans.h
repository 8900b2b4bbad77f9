// Loops over neighbouring elements for each activation and dtype, compiled in activation_spans.cpp.
#pragma once

#include "core/activation_functions.h"
#include "core/scalar.h"

namespace fusedtricks::cpu {

// y = act(x). y may be x.
template <class T>
using ActivationSpan = void (*)(const T* x, T* y, int64_t n, const Activation&);

template <class T>
ActivationSpan<T> activation_span(const Activation& activation);

// dx = dy * act', where `kept` is the result if the activation keeps it, otherwise the input. dx may be dy.
template <class T>
using DerivativeSpan = void (*)(const T* dy, const T* kept, T* dx, int64_t n, const Activation&);

template <class T>
DerivativeSpan<T> derivative_span(const Activation& activation);

// dz = dy * act'(z), for a z in the compute type.
template <class T>
using DerivativeAtSpan = void (*)(const T* dy, const OpMath<T>* z, T* dz, int64_t n, const Activation&);

template <class T>
DerivativeAtSpan<T> derivative_at_span(const Activation& activation);

}  // namespace fusedtricks::cpu

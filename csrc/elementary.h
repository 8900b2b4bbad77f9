// Elementary functions without branches or calls, so that loops over them vectorise.
//
// Relative error of each is a few units in the last place over its whole range. NaN gives NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "inline.h"

namespace fusedtricks {

template <class To, class From>
FT_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Int = int32_t;
  static constexpr int mantissa_bits = 23, bias = 127, degree = 7, log1p_terms = 7;
  static constexpr float lowest = -87.0f, highest = 88.3f;
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
};

template <>
struct ExpTraits<double> {
  using Int = int64_t;
  static constexpr int mantissa_bits = 52, bias = 1023, degree = 13, log1p_terms = 17;
  static constexpr double lowest = -708.0, highest = 709.4;
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
};

// (e^r - 1) / r by its Taylor series up to r^(last-1) / last!, nested: (1 + r/2 (1 + r/3 (…))) for term = 1.
template <int term, int last, class V>
FT_INLINE V exp_series(V r) {
  constexpr V inverse = V(1) / V(term);
  if constexpr (term == last)
    return inverse;
  else
    return inverse + inverse * r * exp_series<term + 1, last>(r);
}

// atanh(s) / s by its Taylor series in s^2.
template <int index, int count, class V>
FT_INLINE V atanh_series(V square) {
  constexpr V inverse = V(1) / V(2 * index + 1);
  if constexpr (index + 1 == count)
    return inverse;
  else
    return inverse + square * atanh_series<index + 1, count>(square);
}

// e^x = scale * (1 + tail), scale a power of two and |tail| < 0.42; x within [lowest, highest].
template <class V>
struct ScaledExp {
  V scale, tail;
};

template <class V>
FT_INLINE ScaledExp<V> scaled_exp(V x) {
  using Traits = ExpTraits<V>;
  using Int = typename Traits::Int;
  // Adding 1.5 * 2^mantissa_bits leaves the nearest integer in the low bits; adding the bias, the exponent's bits.
  const V magic = V(3) * V(Int(1) << (Traits::mantissa_bits - 1)) + V(Traits::bias);
  const V shifted = x * V(1.44269504088896340736) + magic;
  const V n = shifted - magic;
  const V r = (x - n * Traits::ln2_high) - n * Traits::ln2_low;
  const V scale = bit_cast<V>(Int(bit_cast<std::make_unsigned_t<Int>>(shifted) << Traits::mantissa_bits));
  return {scale, r * exp_series<1, Traits::degree>(r)};
}

template <class V>
FT_INLINE V at_least_lowest(V x) {
  return x < ExpTraits<V>::lowest ? ExpTraits<V>::lowest : x;
}

template <class V>
FT_INLINE V at_most_highest(V x) {
  return x > ExpTraits<V>::highest ? ExpTraits<V>::highest : x;
}

// exp for x <= 0.
template <class V>
FT_INLINE V exp_nonpositive(V x) {
  const auto e = scaled_exp(at_least_lowest(x));
  return x < ExpTraits<V>::lowest ? V(0) : e.scale * e.tail + e.scale;
}

template <class V>
FT_INLINE V exp(V x) {
  const V value = exp_nonpositive(at_most_highest(x));
  return x > ExpTraits<V>::highest ? std::numeric_limits<V>::infinity() : value;
}

// Saturates at highest instead of overflowing.
template <class V>
FT_INLINE V expm1(V x) {
  const auto e = scaled_exp(at_most_highest(at_least_lowest(x)));
  return e.scale * e.tail + (e.scale - V(1));
}

// log(1 + u) for u in [0, 1].
template <class V>
FT_INLINE V log1p_unit(V u) {
  const V s = u / (V(2) + u);
  return V(2) * s * atanh_series<0, ExpTraits<V>::log1p_terms>(s * s);
}

template <class V>
FT_INLINE V sigmoid(V x) {
  return V(1) / (V(1) + exp(-x));
}

template <class V>
FT_INLINE V tanh(V x) {
  const V bounded = x > V(20) ? V(20) : x < V(-20) ? V(-20) : x;
  const V e = expm1(V(2) * bounded);
  return e / (e + V(2));
}

// Density of the standard normal.
template <class V>
FT_INLINE V normal_pdf(V x) {
  return V(0.39894228040143267794) * exp_nonpositive(V(-0.5) * x * x);
}

// Distribution function of the standard normal, x -> erfc(-x / sqrt(2)) / 2.
FT_INLINE double normal_cdf(double x) { return 0.5 * std::erfc(-x * 0.70710678118654752440); }

// erfc(z) e^(z^2) = t P(t), t = 1 / (1 + 0.3 z): P fitted for z in [0, 10] with a relative error below 2e-8, so that
// the tails, where e^(-z^2) is all there is, are as exact as the centre.
FT_INLINE float normal_cdf(float x) {
  const float t = 1.0f / (1.0f + 0.3f * 0.70710678f * std::fabs(x));
  const float t2 = t * t, t4 = t2 * t2;
  const float low = (0.169187993f + 0.170715332f * t) + (0.148338407f + 0.21492894f * t) * t2;
  const float high = (-0.0946572572f + 0.547729194f * t) + (-0.512285829f + 0.485566854f * t) * t2;
  const float series = low + (high + -0.129523635f * t4) * t4;
  const float upper_tail = 0.5f * t * series * exp_nonpositive(-0.5f * x * x);
  return x > 0.0f ? 1.0f - upper_tail : upper_tail;
}

}  // namespace fusedtricks

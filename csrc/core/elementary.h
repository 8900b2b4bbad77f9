// Elementary functions without branches or calls, so that loops over them vectorise. The relative error of each is a
// few units in the last place over the whole range. NaN gives NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/macros.h"

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
  static constexpr int mantissa_bits = 23, bias = 127, log1p_terms = 7;
  static constexpr float lowest = -87.0f, highest = 88.3f;
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
};

template <>
struct ExpTraits<double> {
  using Int = int64_t;
  static constexpr int mantissa_bits = 52, bias = 1023, log1p_terms = 17;
  static constexpr double lowest = -708.0, highest = 709.4;
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
};

// lowest + x (next + x (… highest)).
template <class V>
FT_INLINE V polynomial(V, V highest) {
  return highest;
}

template <class V, class... Coefficients>
FT_INLINE V polynomial(V x, V lowest, Coefficients... others) {
  return lowest + x * polynomial(x, others...);
}

// (e^r - 1) / r for |r| <= log(2) / 2, fitted with a relative error below 1.4e-8.
FT_INLINE float exp_series(float r) {
  return polynomial(r, 1.0f, 0.5f, 0.16666542f, 0.041666277f, 0.008366755f, 0.0013946748f);
}

// The Taylor series of (e^r - 1) / r, nested: 1 + r/2 (1 + r/3 (…)) for term = 1. Written as a polynomial with as many
// constants it would make CUDA kernels in double spill registers.
template <int term, int last>
FT_INLINE double exp_taylor(double r) {
  constexpr double inverse = 1.0 / term;
  if constexpr (term == last)
    return inverse;
  else
    return inverse + inverse * r * exp_taylor<term + 1, last>(r);
}

FT_INLINE double exp_series(double r) { return exp_taylor<1, 13>(r); }

// The Taylor series of atanh(s) / s in s^2, from term `index` on.
template <int index, int count, class V>
FT_INLINE V atanh_series(V square) {
  constexpr V inverse = V(1) / V(2 * index + 1);
  if constexpr (index + 1 == count)
    return inverse;
  else
    return inverse + square * atanh_series<index + 1, count>(square);
}

// e^x or 2^x as scale * (1 + tail), where scale is a power of two and |tail| < 0.42.
template <class V>
struct ScaledExp {
  V scale, tail;
};

// The integer nearest to an exponent, and 2 to the power of it. Adding 1.5 * 2^mantissa_bits rounds: the integer is
// then in the low bits of the sum. Adding the bias too makes these the exponent bits of the power.
template <class V>
struct NearestPower {
  using Traits = ExpTraits<V>;
  using Int = typename Traits::Int;
  static constexpr V magic = V(3) * V(Int(1) << (Traits::mantissa_bits - 1)) + V(Traits::bias);

  V shifted;

  FT_INLINE explicit NearestPower(V unrounded) : shifted(unrounded + magic) {}
  FT_INLINE V exponent() const { return shifted - magic; }
  FT_INLINE V value() const {
    return bit_cast<V>(Int(bit_cast<std::make_unsigned_t<Int>>(shifted) << Traits::mantissa_bits));
  }
};

// e^x for x in [lowest, highest].
template <class V>
FT_INLINE ScaledExp<V> scaled_exp(V x) {
  using Traits = ExpTraits<V>;
  const NearestPower<V> power(x * V(1.44269504088896340736));
  const V n = power.exponent();
  const V r = (x - n * Traits::ln2_high) - n * Traits::ln2_low;
  return {power.value(), r * exp_series(r)};
}

// 2^x for x in [-126, 0]. The series is fitted with a relative error below 2e-9.
FT_INLINE float exp2_nonpositive(float x) {
  const NearestPower<float> power(x);
  const float r = x - power.exponent(), scale = power.value();
  const float series =
      polynomial(r, 0.6931472f, 0.24022648f, 0.055503324f, 0.009618438f, 0.0013398901f, 0.00015353342f);
  return scale * (r * series) + scale;
}

template <class V>
FT_INLINE V at_least_lowest(V x) {
  return x < ExpTraits<V>::lowest ? ExpTraits<V>::lowest : x;
}

template <class V>
FT_INLINE V at_most_highest(V x) {
  return x > ExpTraits<V>::highest ? ExpTraits<V>::highest : x;
}

// exp(max(x, lowest)), for x <= highest.
template <class V>
FT_INLINE V exp_above_zero(V x) {
  const auto e = scaled_exp(at_least_lowest(x));
  return e.scale * e.tail + e.scale;
}

// exp for x <= highest.
template <class V>
FT_INLINE V exp_bounded(V x) {
  const V value = exp_above_zero(x);
  return x < ExpTraits<V>::lowest ? V(0) : value;
}

template <class V>
FT_INLINE V exp(V x) {
  const V value = exp_bounded(at_most_highest(x));
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
  const V value = V(1) / (V(1) + exp_above_zero(at_most_highest(-x)));
  return -x > ExpTraits<V>::highest ? V(0) : value;
}

template <class V>
FT_INLINE V tanh(V x) {
  const V bounded = x > V(20) ? V(20) : x < V(-20) ? V(-20) : x;
  const auto e = scaled_exp(V(2) * bounded);
  const V minus_one = e.scale * e.tail + (e.scale - V(1));
  return minus_one / (minus_one + V(2));
}

// Distribution function and density of the standard normal distribution at -magnitude, where magnitude is |x|, limited
// to where both vanish so that their products with it are finite.
template <class V>
struct NormalTail {
  V magnitude, cdf, pdf;
};

FT_INLINE NormalTail<double> normal_tail(double x) {
  const double distance = std::fabs(x), magnitude = distance > 38.0 ? 38.0 : distance;
  const double pdf = 0.39894228040143267794 * exp_bounded(-0.5 * magnitude * magnitude);
  return {magnitude, 0.5 * std::erfc(magnitude * 0.70710678118654752440), pdf};
}

// cdf = e^(-x^2 / 2) t P(t) with t = 1 / (1 + 0.21 |x|). P is fitted with a relative error below 2e-8, so the tails are
// as exact as the centre.
FT_INLINE NormalTail<float> normal_tail(float x) {
  const float distance = std::fabs(x), magnitude = distance > 13.2f ? 13.2f : distance;
  const float t = 1.0f / (1.0f + 0.21f * magnitude);
  const float series = polynomial(t, 0.08370564877986908f, 0.08516131341457367f, 0.06857938319444656f,
                                  0.1271279752254486f, -0.0989701896905899f, 0.3564326763153076f, -0.33622393012046814f,
                                  0.2864159345626831f, -0.07222880423069f);
  const float decay = exp2_nonpositive(magnitude * (magnitude * -0.72134752f));
  return {magnitude, t * series * decay, 0.39894228f * decay};
}

}  // namespace fusedtricks

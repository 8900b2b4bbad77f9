// The moments of values that are summed around a shift near their mean, in the compute type, and when that is not
// exact enough.
#pragma once

#include "cpu/batch_norm/lane_sums.h"

namespace fusedtricks::cpu {

// Adds d = x - shift and d^2.
template <class T, class Channels>
void add_moments(const T* x, Runs runs, Channels channels, Lanes<Channels>& sums) {
  using V = OpMath<T>;
  add_runs<Channels, Write::kNo, T>(x, nullptr, nullptr, runs, sums, [=](int64_t i, int64_t j) {
    const V d = load(x[i]) - channels.template get<kShift>(j);
    return std::pair<V, V>(d, d * d);
  });
}

// Whether sums of d and d^2 over `count` values give the variance to rounding error: yes, unless the shift is more than
// two deviations off the mean, or the squares overflow. Then the values are summed again, exactly. The choice depends
// on the data alone.
inline bool sums_are_sound(double sum, double sum_of_squares, double count) {
  return sum * sum <= 0.8 * count * sum_of_squares && sum_of_squares * 0 == 0;
}

// Moments of `count` values that are `stride` apart, computed in double for every T.
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

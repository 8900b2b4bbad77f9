// Moments of a BatchNorm's input. Values are summed around a shift near their mean, in the compute type; where that
// turns out not to be exact enough, once more in double.
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

// Moments of n values, in double for every T.
template <class T>
Moments<double> exact_moments(const T* x, int64_t n) {
  Moments<double> m;
  double sum = 0, error = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(load(x[i]));
  m.count = double(n);
  m.mean = sum / m.count;
  for (int64_t i = 0; i < n; ++i) {
    const double d = double(load(x[i])) - m.mean;
    m.m2 += d * d;
    error += d;
  }
  m.m2 -= error * error / m.count;
  return m;
}

// The first shift of a channel: the mean of its first few values.
template <class T>
double first_shift(const T* x, int64_t n) {
  n = std::min<int64_t>(n, 16);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(load(x[i]));
  return sum / double(n);
}

// Merges one channel's values at x into its moments.
template <class T>
void add_run_moments(const T* x, Runs runs, Moments<double>& moments) {
  using V = OpMath<T>;
  OneChannel<V> channel;
  channel.value[kShift] = V(moments.count > 0 ? moments.mean : first_shift(x, runs.n));
  Lanes<OneChannel<V>> lanes;
  add_moments(x, runs, channel, lanes);

  const double count = double(runs.count * runs.n), sum = lanes.total_sum(), squares = lanes.total_product();
  if (sums_are_sound(sum, squares, count)) {
    moments.merge({count, double(channel.value[kShift]) + sum / count, squares - sum * sum / count});
    return;
  }
  for (int64_t run = 0; run < runs.count; ++run) moments.merge(exact_moments(x + run * runs.stride, runs.n));
}

// Mean and sum of squared deviations of each of `width` columns, in double for every T.
template <class T>
void exact_tile(const T* x, int64_t rows, int64_t stride, int width, double* mean, double* m2) {
  constexpr int lanes = ManyChannels<OpMath<T>>::lanes;
  double sum[lanes] = {}, error[lanes] = {};
  for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
    for (int j = 0; j < width; ++j) sum[j] += double(load(x[r * stride + j]));
  }
  for (int j = 0; j < width; ++j) mean[j] = sum[j] / double(rows), m2[j] = 0;
  for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
    for (int j = 0; j < width; ++j) {
      const double d = double(load(x[r * stride + j])) - mean[j];
      error[j] += d;
      m2[j] += d * d;
    }
  }
  for (int j = 0; j < width; ++j) m2[j] -= error[j] * error[j] / double(rows);
}

// Merges `rows` rows of up to ManyChannels::lanes columns, a channel each, into the moments of the `done` rows before.
template <class T>
void add_tile_moments(const T* x, int64_t rows, int64_t stride, int width, double* mean, double* m2, int64_t done) {
  using V = OpMath<T>;
  constexpr int lanes = ManyChannels<V>::lanes;
  V shift[lanes];
  const int64_t sample = std::min<int64_t>(rows, 4);
  for (int j = 0; j < width; ++j) shift[j] = done ? V(mean[j]) : V(0);
  for (int64_t r = 0; done == 0 && r < sample; ++r) {
#pragma omp simd
    for (int j = 0; j < width; ++j) shift[j] += load(x[r * stride + j]) * (V(1) / V(sample));
  }
  Lanes<ManyChannels<V>> sums;
  add_moments(x, Runs{rows, stride, width}, ManyChannels<V>{shift, 0}, sums);

  const double n = double(rows);
  double tile_mean[lanes], tile_m2[lanes];
  int unsound = 0;
#pragma omp simd reduction(+ : unsound)
  for (int j = 0; j < width; ++j) {
    const double sum = sums.sum[j], offset = sum / n;
    tile_mean[j] = double(shift[j]) + offset;
    tile_m2[j] = sums.product[j] - sum * offset;
    unsound += !sums_are_sound(sum, sums.product[j], n);
  }
  if (unsound) exact_tile(x, rows, stride, width, tile_mean, tile_m2);
  for (int j = 0; j < width; ++j) {
    Moments<double> m{double(done), mean[j], m2[j]};
    m.merge({n, tile_mean[j], tile_m2[j]});
    mean[j] = m.mean;
    m2[j] = m.m2;
  }
}

}  // namespace fusedtricks::cpu

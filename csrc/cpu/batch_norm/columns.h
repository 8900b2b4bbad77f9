// Sweeps over the columns of a block of rows, where neighbouring elements belong to different sums: a block of a
// channels_last tensor, or the planes of some channels with a row a sample.
#pragma once

#include "cpu/batch_norm/moments.h"
#include "cpu/batch_norm/spans.h"
#include "cpu/simd/streams.h"

namespace fusedtricks::cpu {

constexpr int64_t kSegment = 1024;  // columns of a row of the output tile

// Mean and sum of squared deviations of each of `width` columns, in double.
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

// Merges the moments of `rows` rows of up to ManyChannels::lanes columns into those of the `done` rows before them.
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

// Calls write(destination, index, span) for groups of `rows` rows of n <= kSegment elements, `stride` apart in memory,
// where span covers four rows, or one row four times: that goes by way of a tile, for it may be computed from what it
// is written over.
template <class T, class Write>
void write_rows(T* out, int64_t rows, int64_t stride, int64_t n, bool stream, const Write& write) {
  constexpr int64_t kRows = 4;
  alignas(kCacheLine) T tile[kRows * kSegment];
  for (int64_t r = 0, group; r < rows; r += group) {
    group = rows - r >= kRows ? kRows : 1;
    const int64_t first = r * stride, in_stride = group == 1 ? 0 : stride;
    if (!stream && group > 1) {
      write(out + first, first, RowSpan{n, in_stride, in_stride});
      continue;
    }
    write(tile, first, RowSpan{n, in_stride, group == 1 ? 0 : kSegment});
    if (!stream) {
      std::copy_n(tile, n, out + first);
      continue;
    }
    for (int64_t q = 0; q < group; ++q) stream_copy(out + first + q * stride, tile + q * kSegment, n * sizeof(T));
  }
  if (stream) stream_fence();
}

}  // namespace fusedtricks::cpu

// Fractional max-pooling of channels_last tensors. A lane is a channel. Each channel has random numbers of its own, so
// the windows of neighbouring lanes start at different positions.
#pragma once

#include <limits>

#include "cpu/fractional_max_pool/spans.h"
#include "cpu/fractional_max_pool/windows.h"
#include "cpu/parallel_tasks.h"

namespace fusedtricks::cpu {

// Channels that are pooled together: a cache line of them.
template <class T>
constexpr int kPoolLanes = int(kCacheLine / sizeof(T));

// Updates the running maximum of each lane's window with one more place. The first of equal values counts, of NaN the
// last.
template <int lanes, class T>
FT_INLINE void take_place(const T* x, const int64_t (&offset)[lanes], OpMath<T> (&best)[lanes], int32_t (&found)[lanes],
                          int32_t place) {
  T values[lanes];
  for (int c = 0; c < lanes; ++c) values[c] = x[offset[c]];
#pragma omp simd
  for (int c = 0; c < lanes; ++c) {
    const OpMath<T> v = load(values[c]);
    const bool takes = bool(int(v > best[c]) | int(v != v));
    best[c] = takes ? v : best[c];
    found[c] = takes ? place : found[c];
  }
}

// Cuts the `items` of a sample into parts of `length`, and calls f(table, sample, first channel, channels, first item,
// end item) for all groups of channels of a part in turn: they read and write the same cache lines and pages. Small
// samples share a task.
template <class T, class F>
void for_channel_groups(const PoolCall& call, int64_t items, int64_t length, const F& f) {
  constexpr int lanes = kPoolLanes<T>;
  const PoolShape& shape = call.shape;
  const int64_t C = shape.channels, parts = (items + length - 1) / length;
  const int64_t together = std::max<int64_t>(1, kPoolTask / (C * shape.positions()));
  parallel_tasks((shape.batch + together - 1) / together * parts, [&](int64_t task) {
    const int64_t first = task / parts * together, item = task % parts * length;
    WindowTable table(call, lanes);
    for (int64_t sample = first; sample < std::min(shape.batch, first + together); ++sample) {
      for (int64_t channel = 0; channel < C; channel += lanes) {
        const int count = int(std::min<int64_t>(lanes, C - channel));
        table.set(sample * C + channel, count);
        f(table, sample, channel, count, item, std::min(items, item + length));
      }
    }
  });
}

// Input of a task, small enough to stay in L2 until the last group of channels has read it.
constexpr int64_t kPoolBytes = 256 << 10;

template <class T>
void pool_channels_last(const PoolCall& call, const T* x, T* y, void* places) {
  constexpr int lanes = kPoolLanes<T>;
  const PoolShape& shape = call.shape;
  const int64_t C = shape.channels, width = shape.output[kWidth], rows = shape.output[kDepth] * shape.output[kHeight];
  const int place_bytes = shape.place_bytes();
  const ResultSpan<T> activate = result_span<T>(call.act);
  const std::vector<int64_t> offsets = place_offsets(shape);

  const auto group = [&](const WindowTable& table, int64_t sample, int64_t channel, int count, int64_t row,
                         int64_t end) {
    const T* plane = x + sample * shape.positions() * C;
    if (channel == 0) {
      const int64_t first = table.position(row, 0), last = table.position(end - 1, 0) + window_extent(shape);
      const int64_t bytes = (last - first) * C * int64_t(sizeof(T));
      if (bytes <= 2 * kPoolBytes) touch(plane + first * C, 1, bytes, bytes);
    }
    for (; row < end; ++row) {
      int64_t before[lanes], offset[lanes];
      for (int c = 0; c < lanes; ++c) before[c] = table.position(row, c);
      for (int64_t i = 0; i < width; ++i) {
        const int32_t* start = table.starts(kWidth, i);
        OpMath<T> best[lanes];
        int32_t found[lanes];
        for (int c = 0; c < lanes; ++c) {
          // Lanes beyond the last channel read the first channel.
          offset[c] = (before[c] + start[c]) * C + (c < count ? c : 0);
          best[c] = -std::numeric_limits<OpMath<T>>::infinity();
          found[c] = 0;
        }
        for (size_t place = 0; place < offsets.size(); ++place) {
          take_place(plane + channel + offsets[place] * C, offset, best, found, int32_t(place));
        }
        const int64_t to = (sample * shape.windows() + row * width + i) * C + channel;
        activate(best, y + to, count, call.act);
        store_places(found, places, place_bytes, to, count);
      }
    }
  };
  const int64_t bytes_of_row = shape.positions() / rows * C * int64_t(sizeof(T));
  for_channel_groups<T>(call, rows, std::max<int64_t>(1, kPoolBytes / std::max<int64_t>(1, bytes_of_row)), group);
}

// Whether the window of some lane, which covers [at[lane], at[lane] + extent), reaches into [0, part).
inline bool any_reaches(const int64_t* at, int count, int64_t extent, int64_t part) {
  const auto [lowest, highest] = std::minmax_element(at, at + count);
  return *lowest < part && *highest + extent > 0;
}

// Slots for sums outside of the part, which are ignored. They are used in turn: with one slot each addition would wait
// for the one before.
constexpr int64_t kOutside = 8;

template <class T>
void pool_channels_last_backward(const PoolCall& call, const T* dy, const T* y, const void* places, T* dx) {
  using V = OpMath<T>;
  constexpr int lanes = kPoolLanes<T>;
  constexpr int64_t most_positions = kPoolBytes / int64_t(lanes * sizeof(V));  // whose sums fit into L2
  const PoolShape& shape = call.shape;
  const int64_t C = shape.channels, width = shape.output[kWidth], height = shape.output[kHeight];
  const int64_t slice = shape.input[kHeight] * shape.input[kWidth], extent = window_extent(shape) + 1;
  const int place_bytes = shape.place_bytes();
  const GradientSpan<T> weigh = gradient_span<T>(call.act);
  const std::vector<int64_t> offsets = place_offsets(shape);

  const auto group = [&](const WindowTable& table, int64_t sample, int64_t channel, int count, int64_t first,
                         int64_t end) {
    const int64_t part = end - first;
    std::vector<V> sums((part + kOutside) * lanes);
    alignas(kCacheLine) V dz[lanes] = {};
    alignas(kCacheLine) int32_t place[lanes] = {};
    for (int64_t d = 0; d < shape.output[kDepth]; ++d) {
      int64_t of_depth[lanes], before[lanes];
      for (int c = 0; c < count; ++c) of_depth[c] = table.starts(kDepth, d)[c] * slice - first;
      if (!any_reaches(of_depth, count, shape.kernel[kDepth] * slice, part)) continue;
      for (int64_t h = 0; h < height; ++h) {
        for (int c = 0; c < count; ++c) before[c] = of_depth[c] + table.starts(kHeight, h)[c] * shape.input[kWidth];
        if (!any_reaches(before, count, extent + shape.input[kWidth], part)) continue;
        for (int64_t w = 0; w < width; ++w) {
          const int32_t* start = table.starts(kWidth, w);
          const int64_t from = (sample * shape.windows() + (d * height + h) * width + w) * C + channel;
          weigh(dy + from, y + from, dz, count, call.act);
          load_places(places, place_bytes, from, place, count);
          // Each lane adds to its own column, so lanes never collide.
#pragma omp simd
          for (int c = 0; c < count; ++c) {
            const int64_t position = before[c] + start[c] + offsets[place[c]];
            const int64_t slot = position < 0 || position >= part ? part + w % kOutside : position;
            sums[slot * lanes + c] += dz[c];
          }
        }
      }
    }
    for (int64_t p = 0; p < part; ++p) {
      T* to = dx + (sample * shape.positions() + first + p) * C + channel;
      apply_activation<T, Identity<V>>(sums.data() + p * lanes, to, count, call.act);
    }
  };
  // If windows are several slices deep, a part must have more slices than that: otherwise most of the windows that
  // reach into it would have their maximum elsewhere.
  const int64_t near =
      std::clamp<int64_t>(2 * kPoolBytes / (C * int64_t(sizeof(T))), most_positions / 8, most_positions);
  const int64_t deep = shape.kernel[kDepth] > 1 ? 4 * shape.kernel[kDepth] * slice : 0;
  for_channel_groups<T>(call, shape.positions(), std::max(near, deep), group);
}

}  // namespace fusedtricks::cpu

// Fractional max-pooling of rows (channels_last): a lane is a channel, whose windows begin where its own random numbers
// say.
#pragma once

#include <limits>

#include "dispatch.h"
#include "pool_windows.h"

namespace fusedtricks::cpu {

// Channels that go together: a cache line of them.
template <class T>
constexpr int kPoolLanes = int(kCacheLine / sizeof(T));

// Takes one more place of each lane's window into its running maximum.
template <int lanes, class T>
FT_INLINE void take_place(const T* x, const int64_t (&offset)[lanes], Compute<T> (&best)[lanes],
                          int32_t (&found)[lanes], int32_t place) {
  T values[lanes];
  for (int c = 0; c < lanes; ++c) values[c] = x[offset[c]];
#pragma omp simd
  for (int c = 0; c < lanes; ++c) {
    const Compute<T> v = load(values[c]);
    const bool takes = bool(int(v > best[c]) | int(v != v));
    best[c] = takes ? v : best[c];
    found[c] = takes ? place : found[c];
  }
}

// Calls f(table, sample, first channel, channels, first item, end) for groups of channels and parts of `items`.
template <class T, class F>
void for_channel_groups(const PoolCall& call, const int64_t* rng_state, int64_t items, int64_t length, const F& f) {
  constexpr int lanes = kPoolLanes<T>;
  const int64_t C = call.shape.channels, groups = (C + lanes - 1) / lanes, parts = (items + length - 1) / length;
  parallel_tasks(call.shape.batch * groups * parts, [&](int64_t task) {
    const int64_t sample = task / parts / groups, channel = task / parts % groups * lanes, item = task % parts * length;
    const int count = int(std::min<int64_t>(lanes, C - channel));
    WindowTable table(call, rng_state, lanes);
    table.set(sample * C + channel, count);
    f(table, sample, channel, count, item, std::min(items, item + length));
  });
}

template <class T>
void pool_rows(const PoolCall& call, const T* x, T* y, void* places, const int64_t* rng_state) {
  constexpr int lanes = kPoolLanes<T>;
  constexpr int64_t task_windows = 2048;
  const PoolShape& shape = call.shape;
  const int64_t C = shape.channels, width = shape.output[kWidth];
  const int place_bytes = shape.place_bytes();
  const ResultSpan<T> activate = result_span<T>(call.act);
  const std::vector<int64_t> offsets = place_offsets(shape);

  const auto group = [&](const WindowTable& table, int64_t sample, int64_t channel, int count, int64_t row,
                         int64_t end) {
    const T* plane = x + sample * shape.positions() * C + channel;
    for (; row < end; ++row) {
      int64_t before[lanes], offset[lanes];
      for (int c = 0; c < lanes; ++c) before[c] = table.position(row, c);
      for (int64_t i = 0; i < width; ++i) {
        const int32_t* start = table.starts(kWidth, i);
        Compute<T> best[lanes];
        int32_t found[lanes];
        for (int c = 0; c < lanes; ++c) {
          // Lanes beyond the last channel read the first one's.
          offset[c] = (before[c] + start[c]) * C + (c < count ? c : 0);
          best[c] = -std::numeric_limits<Compute<T>>::infinity();
          found[c] = 0;
        }
        for (size_t place = 0; place < offsets.size(); ++place) {
          take_place(plane + offsets[place] * C, offset, best, found, int32_t(place));
        }
        const int64_t to = (sample * shape.windows() + row * width + i) * C + channel;
        activate(best, y + to, count, call.act);
        store_places(found, places, place_bytes, to, count);
      }
    }
  };
  for_channel_groups<T>(call, rng_state, shape.output[kDepth] * shape.output[kHeight],
                        std::max<int64_t>(1, task_windows / width), group);
}

template <class T>
void pool_rows_backward(const PoolCall& call, const T* dy, const T* y, const void* places, const int64_t* rng_state,
                        T* dx) {
  using V = Compute<T>;
  constexpr int lanes = kPoolLanes<T>;
  constexpr int64_t task_positions = (256 << 10) / int64_t(lanes * sizeof(V));  // whose sums fit L2
  const PoolShape& shape = call.shape;
  const int64_t C = shape.channels, width = shape.output[kWidth], rows = shape.output[kDepth] * shape.output[kHeight];
  const int place_bytes = shape.place_bytes();
  const GradientSpan<T> weigh = gradient_span<T>(call.act);
  const std::vector<int64_t> offsets = place_offsets(shape);

  const auto group = [&](const WindowTable& table, int64_t sample, int64_t channel, int count, int64_t first,
                         int64_t end) {
    const int64_t part = end - first;
    std::vector<V> sums((part + 1) * lanes);  // the last place is for what lies outside the part
    alignas(kCacheLine) V dz[lanes] = {};
    alignas(kCacheLine) int32_t place[lanes] = {};
    for (int64_t row = 0; row < rows; ++row) {
      int64_t before[lanes], lowest = std::numeric_limits<int64_t>::max(), highest = 0;
      for (int c = 0; c < count; ++c) {
        before[c] = table.position(row, c) - first;
        lowest = std::min(lowest, before[c]);
        highest = std::max(highest, before[c]);
      }
      if (lowest >= part || highest + offsets.back() + shape.input[kWidth] < 0) continue;
      for (int64_t i = 0; i < width; ++i) {
        const int32_t* start = table.starts(kWidth, i);
        const int64_t from = (sample * shape.windows() + row * width + i) * C + channel;
        weigh(dy + from, y + from, dz, count, call.act);
        load_places(places, place_bytes, from, place, count);
        // Each lane adds to a column of its own.
#pragma omp simd
        for (int c = 0; c < count; ++c) {
          const int64_t position = before[c] + start[c] + offsets[place[c]];
          const int64_t slot = position < 0 || position >= part ? part : position;
          sums[slot * lanes + c] += dz[c];
        }
      }
    }
    for (int64_t p = 0; p < part; ++p) {
      T* to = dx + (sample * shape.positions() + first + p) * C + channel;
      apply_activation<T, Identity<V>>(sums.data() + p * lanes, to, count, call.act);
    }
  };
  for_channel_groups<T>(call, rng_state, shape.positions(), task_positions, group);
}

}  // namespace fusedtricks::cpu

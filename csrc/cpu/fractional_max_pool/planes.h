// Fractional max-pooling of planes (NCHW, NCDHW).
#pragma once

#include <limits>

#include "cpu/fractional_max_pool/spans.h"
#include "cpu/fractional_max_pool/windows.h"
#include "cpu/parallel_tasks.h"

namespace fusedtricks::cpu {

// A task takes `planes` whole planes, or `length` items of one plane, which is then cut into `parts` parts.
struct PlaneTasks {
  int64_t all_planes, planes, parts, items, length;

  // A plane has `items` items of item_elements elements.
  PlaneTasks(int64_t all_planes, int64_t items, int64_t item_elements) : all_planes(all_planes), items(items) {
    const int64_t elements = std::max<int64_t>(1, items * item_elements);
    planes = std::max<int64_t>(1, kPoolTask / elements);
    length = elements <= 2 * kPoolTask ? items : std::max<int64_t>(1, kPoolTask / item_elements);
    parts = (items + length - 1) / length;
  }

  // Calls f(state, plane, first item, end item) for every plane of a task, with a state made by start() for each task.
  template <class Start, class F>
  void run(const Start& start, const F& f) const {
    const int64_t groups = (all_planes + planes - 1) / planes;
    parallel_tasks(groups * parts, [&](int64_t task) {
      auto state = start();
      const int64_t first = task / parts * planes, item = task % parts * length;
      for (int64_t plane = first; plane < std::min(all_planes, first + planes); ++plane) {
        f(state, plane, item, std::min(items, item + length));
      }
    });
  }
};

// Updates the running maxima of n windows, each of which starts one position after the one before, with `width` places
// of a row. `place` is the number of the first of them. The first of equal values counts, of NaN the last.
template <int width, class T>
void take_places(const T* __restrict row, OpMath<T>* __restrict best, int32_t* __restrict found, int32_t place,
                 int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    OpMath<T> value = best[i];
    int32_t at = found[i];
    FT_UNROLL
    for (int l = 0; l < width; ++l) {
      const OpMath<T> v = load(row[i + l]);
      const bool takes = bool(int(v > value) | int(v != v));
      value = takes ? v : value;
      at = takes ? place + l : at;
    }
    best[i] = value;
    found[i] = at;
  }
}

constexpr int64_t kPoolTile = 1024;

// The maxima of windows that start at every position of a stretch of memory, whether there is such a window or not. So
// memory is read in whole vectors; the maxima of windows that do exist are picked from here, from L1.
template <class T>
struct Stretch {
  alignas(kCacheLine) OpMath<T> best[kPoolTile];
  alignas(kCacheLine) int32_t found[kPoolTile];

  // Computes n windows, the first of which starts at x. That is rounded up to whole vectors, but not beyond the
  // `readable` windows that lie inside the tensor.
  [[gnu::noinline]] void reduce(const PoolShape& shape, const T* x, int64_t n, int64_t readable) {
    constexpr int64_t vector = kCacheLine / int64_t(sizeof(OpMath<T>));
    n = std::min((n + vector - 1) / vector * vector, readable);
    std::fill_n(best, n, -std::numeric_limits<OpMath<T>>::infinity());
    std::fill_n(found, n, 0);
    int32_t place = 0;
    for (int64_t d = 0; d < shape.kernel[kDepth]; ++d) {
      for (int64_t h = 0; h < shape.kernel[kHeight]; ++h) {
        const T* row = x + (d * shape.input[kHeight] + h) * shape.input[kWidth];
        for (int64_t left = shape.kernel[kWidth]; left > 0;) {
          const int width = left > 3 ? 2 : int(left);
          if (width == 3) take_places<3>(row, best, found, place, n);
          if (width == 2) take_places<2>(row, best, found, place, n);
          if (width == 1) take_places<1>(row, best, found, place, n);
          row += width, place += width, left -= width;
        }
      }
    }
  }
};

// Collects results in the order of memory, and writes them a tile at a time.
template <class T>
class PoolResults {
 public:
  PoolResults(const PoolCall& call, T* y, void* places, int64_t first)
      : call_(call), activate_(result_span<T>(call.act)), y_(y), places_(places), next_(first) {}

  // Adds the n windows at `start`, where start 0 is index `origin` of the stretch.
  void pick(const Stretch<T>& stretch, const int32_t* start, int64_t n, int32_t origin) {
    while (n) {
      const int64_t count = std::min(n, kPoolTile - count_);
      gather(stretch.best, start, origin, value_ + count_, count);
      gather(stretch.found, start, origin, place_ + count_, count);
      start += count, n -= count, count_ += count;
      if (count_ == kPoolTile) flush();
    }
  }

  void flush() {
    activate_(value_, y_ + next_, count_, call_.act);
    store_places(place_, places_, call_.shape.place_bytes(), next_, count_);
    next_ += count_;
    count_ = 0;
  }

 private:
  template <class V>
  static void gather(const V* __restrict from, const int32_t* __restrict at, int32_t origin, V* __restrict to,
                     int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = from[at[i] + origin];
  }

  alignas(kCacheLine) OpMath<T> value_[kPoolTile];
  alignas(kCacheLine) int32_t place_[kPoolTile];
  const PoolCall& call_;
  ResultSpan<T> activate_;
  T* y_;
  void* places_;
  int64_t next_, count_ = 0;
};

// Pools rows [row, end) of a plane's windows. x_end: the end of the tensor.
template <class T>
void pool_rows_of_plane(const PoolShape& shape, const WindowTable& table, const T* plane, const T* x_end, int64_t row,
                        int64_t end, PoolResults<T>& results) {
  const int64_t width = shape.output[kWidth], extent = window_extent(shape);
  const int32_t* start = table.starts(kWidth, 0);
  const auto readable = [&](const T* first) { return x_end - first - extent; };
  Stretch<T> stretch;
  // A small plane is one stretch. Windows that cross the end of a row are computed too, but not picked.
  if (shape.positions() <= kPoolTile) {
    stretch.reduce(shape, plane, shape.positions() - extent, readable(plane));
    for (; row < end; ++row) results.pick(stretch, start, width, int32_t(table.position(row, 0)));
    return;
  }
  const int64_t starts = shape.input[kWidth] - shape.kernel[kWidth] + 1;
  for (; row < end; ++row) {
    const T* first = plane + table.position(row, 0);
    for (int64_t from = 0, window = 0; from < starts; from += kPoolTile) {
      const int64_t n = std::min(kPoolTile, starts - from);
      stretch.reduce(shape, first + from, n, readable(first + from));
      const int64_t next = std::lower_bound(start + window, start + width, from + n) - start;
      results.pick(stretch, start + window, next - window, -int32_t(from));
      window = next;
    }
  }
}

template <class T>
void pool_planes(const PoolCall& call, const T* x, T* y, void* places) {
  const PoolShape& shape = call.shape;
  const int64_t width = shape.output[kWidth];
  const T* x_end = x + shape.planes() * shape.positions();
  const PlaneTasks tasks(shape.planes(), shape.output[kDepth] * shape.output[kHeight], width);
  const auto piece = [&](WindowTable& table, int64_t plane, int64_t row, int64_t end) {
    table.set(plane, 1);
    PoolResults<T> results(call, y, places, plane * shape.windows() + row * width);
    pool_rows_of_plane(shape, table, x + plane * shape.positions(), x_end, row, end, results);
    results.flush();
  };
  tasks.run([&] { return WindowTable(call, 1); }, piece);
}

// The gradient of the positions [first, first + part) of a plane, which adds up the windows in their order. `window` is
// the index of the plane's first window.
template <class T>
void scatter_plane(const PoolCall& call, const WindowTable& table, const std::vector<int64_t>& offsets, const T* dy,
                   const T* y, const void* places, int64_t window, int64_t first, int64_t part, OpMath<T>* dx) {
  const PoolShape& shape = call.shape;
  const int64_t width = shape.output[kWidth], rows = shape.output[kDepth] * shape.output[kHeight];
  const GradientSpan<T> weigh = gradient_span<T>(call.act);
  const int32_t* start = table.starts(kWidth, 0);
  const int64_t extent = window_extent(shape) + start[width - 1] + 1;
  alignas(kCacheLine) OpMath<T> dz[kPoolTile];
  alignas(kCacheLine) int32_t place[kPoolTile];
  std::fill_n(dx, part, OpMath<T>(0));

  for (int64_t row = 0; row < rows; ++row, window += width) {
    const int64_t at = table.position(row, 0) - first;
    if (at >= part || at + extent <= 0) continue;
    const bool inside = at >= 0 && at + extent <= part;
    for (int64_t begin = 0; begin < width; begin += kPoolTile) {
      const int64_t n = std::min(kPoolTile, width - begin);
      weigh(dy + window + begin, y + window + begin, dz, n, call.act);
      load_places(places, shape.place_bytes(), window + begin, place, n);
      if (inside) {
        for (int64_t i = 0; i < n; ++i) dx[at + start[begin + i] + offsets[place[i]]] += dz[i];
        continue;
      }
      for (int64_t i = 0; i < n; ++i) {
        const int64_t position = at + start[begin + i] + offsets[place[i]];
        if (position >= 0 && position < part) dx[position] += dz[i];
      }
    }
  }
}

template <class T>
void pool_planes_backward(const PoolCall& call, const T* dy, const T* y, const void* places, T* dx) {
  using V = OpMath<T>;
  struct State {
    WindowTable table;
    std::vector<V> sums;  // empty where T is the compute type: then dx itself holds the sums
  };
  const PoolShape& shape = call.shape;
  const std::vector<int64_t> offsets = place_offsets(shape);
  const PlaneTasks tasks(shape.planes(), shape.positions(), 1);
  const auto piece = [&](State& state, int64_t plane, int64_t first, int64_t end) {
    state.table.set(plane, 1);
    T* to = dx + plane * shape.positions() + first;
    const auto scatter = [&](V* sums) {
      scatter_plane(call, state.table, offsets, dy, y, places, plane * shape.windows(), first, end - first, sums);
    };
    if constexpr (std::is_same_v<T, V>) {
      scatter(to);
    } else {
      scatter(state.sums.data());
      apply_activation<T, Identity<V>>(state.sums.data(), to, end - first, call.act);
    }
  };
  const size_t sums = std::is_same_v<T, V> ? 0 : size_t(tasks.length);
  tasks.run([&] { return State{WindowTable(call, 1), std::vector<V>(sums)}; }, piece);
}

}  // namespace fusedtricks::cpu

// batch_norm_act_max_pool2d forward: one sweep for the statistics, and one for the maxima of
// act((x - mean) * rstd * weight + bias). Rows of activated values are kept, in the compute type, while there are
// windows that reach them.
#include "cpu/activation_spans.h"
#include "cpu/batch_norm/loops.h"
#include "cpu/batch_norm/statistics.h"
#include "cpu/batch_norm_pool/pooled_image.h"

namespace fusedtricks::cpu {
namespace {

template <class T>
void normalize_row(const T* x, OpMath<T>* z, const PooledImage& image, const OneChannel<OpMath<T>>& channel) {
  using V = OpMath<T>;
  normalize<T, V, OneChannel<V>, Identity<V>, false>(x, nullptr, z, RowSpan{image.row(), 0, 0}, channel, {});
}

template <class T>
void normalize_row(const T* x, OpMath<T>* z, const PooledImage& image, const ManyChannels<OpMath<T>>& channels) {
  using V = OpMath<T>;
  constexpr int tile_rows = ManyChannels<V>::tile_rows;
  const int64_t n = image.inner;
  for (int64_t i = 0, group; i < image.pool.width.size; i += group) {
    group = image.pool.width.size - i >= tile_rows ? tile_rows : 1;
    const int64_t stride = group == 1 ? 0 : n;
    normalize<T, V, ManyChannels<V>, Identity<V>, false>(x + i * n, nullptr, z + i * n, RowSpan{n, stride, stride},
                                                         channels, {});
  }
}

// Pools one image after the other.
template <class T>
class Pooling {
  using V = OpMath<T>;

 public:
  Pooling(const PooledImage& image, const Activation& act)
      : image_(image),
        act_(act),
        activate_(act.is_identity() ? nullptr : activation_span<V>(act)),
        kept_(std::min(image.pool.height.extent(), image.pool.height.size)),
        lines_(kept_ * image.row() + 1) {}  // read_strided() may read one element too many

  // Rows [begin, end) of the outputs of one image.
  template <class Channels>
  void pool(const T* x, T* y, uint8_t* argmax, int64_t begin, int64_t end, const Channels& channels) {
    const PoolAxis& rows = image_.pool.height;
    int64_t next = 0;
    for (int64_t o = begin; o < end; ++o) {
      // Rows that lie between windows are skipped; those between the places of a window belong to another one.
      next = std::max(next, rows.start(o));
      for (; next < std::min(rows.start(o) + rows.extent(), rows.size); ++next) activate_row(x, next, channels);
      ahead_ = o + 1 < end && next + rows.stride <= rows.size ? x + next * image_.row() : nullptr;
      pool_row(o, y + o * image_.output_row(), argmax + o * image_.output_row());
    }
  }

 private:
  const PooledImage& image_;
  const Activation& act_;
  ActivationSpan<V> activate_;
  int64_t kept_;
  AlignedVector<V> lines_;
  const T* ahead_ = nullptr;  // the rows of x that the next row of outputs will need first, to be prefetched; or null

  V* line(int64_t row) { return lines_.data() + row % kept_ * image_.row(); }

  template <class Channels>
  void activate_row(const T* x, int64_t row, const Channels& channels) {
    normalize_row(x + row * image_.row(), line(row), image_, channels);
    if (activate_) activate_(line(row), line(row), image_.row(), act_);
  }

  // All windows that lie entirely inside the image have the same taps, shifted.
  void pool_row(int64_t o, T* y, uint8_t* argmax) {
    const PoolAxis& columns = image_.pool.width;
    const int64_t begin = columns.first_whole(), end = columns.end_whole();
    for (int64_t i = 0; i < columns.outputs;) {
      const int64_t count = begin <= i && i < end ? end - i : 1;
      Taps<V> taps;
      add_taps(o, i, taps);
      pool_outputs(taps, i, count, y + i * image_.inner, argmax + i * image_.inner);
      i += count;
    }
  }

  void pool_outputs(const Taps<V>& taps, int64_t first, int64_t count, T* y, uint8_t* argmax) {
    const int64_t C = image_.inner, stride = image_.pool.width.stride;
    if (image_.is_plane()) return max_of_plane(taps, count, stride, y, argmax);
    for (int64_t i = 0; i < count; ++i) {
      if (ahead_) prefetch_columns((first + i) * stride);
      max_of_channels(taps, i * stride * C, C, y + i * C, argmax + i * C);
    }
  }

  // Prefetches the columns from this one on, of the next rows.
  void prefetch_columns(int64_t column) {
    const PoolAxis &rows = image_.pool.height, &columns = image_.pool.width;
    const int64_t n = std::min(columns.stride, columns.size - column) * image_.inner;
    for (int64_t r = 0; r < rows.stride; ++r) {
      const T* from = ahead_ + r * image_.row() + column * image_.inner;
      for (int64_t i = 0; i < n; i += kCacheLine / int64_t(sizeof(T))) __builtin_prefetch(from + i);
    }
  }

  void add_taps(int64_t row_output, int64_t column_output, Taps<V>& taps) {
    const PoolAxis &rows = image_.pool.height, &columns = image_.pool.width;
    const int64_t first = columns.first_place(column_output), end = columns.end_place(column_output);
    for (int64_t r = rows.first_place(row_output); r < rows.end_place(row_output); ++r) {
      const V* row = line(rows.start(row_output) + r * rows.dilation);
      for (int64_t c = first; c < end; ++c) {
        const int64_t column = columns.start(column_output) + c * columns.dilation;
        taps.add(row + column * image_.inner, r * columns.kernel + c);
      }
    }
  }
};

template <class T>
void forward_planes(const BatchNormPoolForward& a) {
  using V = OpMath<T>;
  const T* x = static_cast<const T*>(a.norm.x);
  T* y = static_cast<T*>(a.y);
  const PlanesPlan plan(a.norm.layout);
  const PooledImage image{a.pool, 1};
  for_normalized_planes<T>(a.norm, plan, [&](int64_t task, const Coefficients<V>& coefficients) {
    Pooling<T> pooling(image, a.norm.act);
    const int64_t c0 = plan.first_channel(task), count = plan.channel_count(task);
    for_lines(a.norm.layout.samples, a.pool.height.outputs, task % plan.parts, plan.parts, true,
              [&](int64_t sample, int64_t begin, int64_t end) {
                for (int64_t c = c0; c < c0 + count; ++c) {
                  const int64_t plane = sample * a.norm.layout.channels + c, first = plane * image.output_size();
                  pooling.pool(x + plane * image.size(), y + first, a.argmax + first, begin, end, coefficients.one(c));
                }
              });
  });
}

template <class T>
void forward_channels_last(const BatchNormPoolForward& a) {
  using V = OpMath<T>;
  const T* x = static_cast<const T*>(a.norm.x);
  T* y = static_cast<T*>(a.y);
  const ChannelsLastPlan plan(a.norm.layout, sizeof(T));
  const PooledImage image{a.pool, plan.channels};
  const Coefficients<V> coefficients = row_coefficients<T>(a.norm, plan);
  const int64_t parts = row_parts(a.norm.layout, a.pool.height.outputs, sizeof(T));
  parallel_tasks_reversed(parts, [&](int64_t part) {
    Pooling<T> pooling(image, a.norm.act);
    for_lines(a.norm.layout.samples, a.pool.height.outputs, part, parts, true,
              [&](int64_t sample, int64_t begin, int64_t end) {
                const int64_t first = sample * image.output_size();
                pooling.pool(x + sample * image.size(), y + first, a.argmax + first, begin, end, coefficients.many());
              });
  });
}

int64_t batch_norm_pool_forward_workspace(const BatchNormPoolForward&) { return 0; }

void batch_norm_pool_forward(const BatchNormPoolForward& a) {
  a.norm.count_batch();
  visit_dtype(a.norm.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (a.norm.layout.channels_last)
      forward_channels_last<T>(a);
    else
      forward_planes<T>(a);
  });
}

const Provided provided[] = {
    {kernels::batch_norm_pool_forward_workspace, batch_norm_pool_forward_workspace},
    {kernels::batch_norm_pool_forward, batch_norm_pool_forward},
};

}  // namespace
}  // namespace fusedtricks::cpu

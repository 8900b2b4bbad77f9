// BatchNorm over rows (channels_last, (N, C)). The matrix is cut into a fixed grid of tasks, row chunks by column
// segments; a task walks blocks that fit L2. All partial sums are merged, in order, between the two sweeps, and the
// second sweep takes the blocks last first. Never the rows: within a block memory is read upwards.
#pragma once

#include "batch_norm_loops.h"
#include "dispatch.h"
#include "memory.h"

namespace fusedtricks::cpu {

constexpr int64_t kSegment = 1024;          // channels of a task, and of a row of the output tile
constexpr int64_t kTaskBytes = 192 << 10;   // from this much work on, a task of its own
constexpr int64_t kBlockBytes = 128 << 10;  // of one tensor, between the touch and its use
constexpr int64_t kMaxBlockRows = 512;      // summed in one lane before they go into double
constexpr int64_t kMaxTasks = 64;
constexpr int64_t kTouchRowBytes = 256;  // shorter rows stream at full speed without the touch
constexpr int64_t kMergeChannels = 128;
constexpr int64_t kParallelMerge = 8192;  // partial results from which merging them is shared out

// A function of shape and element size alone.
struct RowsPlan {
  int64_t rows, channels, row_chunks, segments, block_rows;
  bool touches, streams;

  RowsPlan(const Layout& l, int64_t element_size) : rows(l.per_channel()), channels(l.channels) {
    const int64_t bytes = rows * channels * element_size;
    segments = std::max<int64_t>(1, channels / kSegment);
    const int64_t segment_bytes = std::max<int64_t>(1, channels / segments * element_size);
    const int64_t tasks = std::clamp<int64_t>(bytes / kTaskBytes, 1, kMaxTasks);
    row_chunks = std::max<int64_t>(1, std::min((tasks + segments - 1) / segments, rows / 32));
    if (row_chunks > 1) row_chunks = (row_chunks + 1) / 2 * 2;
    block_rows = std::clamp<int64_t>(kBlockBytes / segment_bytes, 16, kMaxBlockRows);
    streams = worth_streaming(rows * channels, element_size);
    touches = streams && segment_bytes > kTouchRowBytes;
  }

  int64_t tasks() const { return row_chunks * segments; }
  int64_t first_row(int64_t chunk) const { return rows * chunk / row_chunks; }
  int64_t first_channel(int64_t segment) const {
    return segment == segments ? channels : channels * segment / segments / kMergeChannels * kMergeChannels;
  }
};

// Rows [r0, r1) by channels [c0, c1) of a task; `done` of the chunk's rows came before.
struct Block {
  int64_t chunk, r0, r1, c0, c1, done;
};

// Calls f(block) for every block; reversed: the newest first.
template <class F>
void for_blocks(const RowsPlan& plan, bool reversed, const F& f) {
  const auto task = [&](int64_t t) {
    const int64_t chunk = t / plan.segments, segment = t % plan.segments;
    const int64_t begin = plan.first_row(chunk), end = plan.first_row(chunk + 1);
    const int64_t blocks = (end - begin + plan.block_rows - 1) / plan.block_rows;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t r0 = begin + (reversed ? blocks - 1 - i : i) * plan.block_rows;
      f(Block{chunk, r0, std::min(end, r0 + plan.block_rows), plan.first_channel(segment),
              plan.first_channel(segment + 1), r0 - begin});
    }
  };
  if (reversed)
    parallel_tasks_reversed(plan.tasks(), task);
  else
    parallel_tasks(plan.tasks(), task);
}

template <class T>
void touch_block(const RowsPlan& plan, const T* x, const Block& b) {
  if (!plan.touches) return;
  const int64_t size = sizeof(T);
  touch(x + b.r0 * plan.channels + b.c0, b.r1 - b.r0, plan.channels * size, (b.c1 - b.c0) * size);
}

// Two sums a channel of every row chunk: mean and sum of squared deviations, or those of the gradients.
struct RowPartials {
  int64_t channels;
  std::vector<double> values;

  explicit RowPartials(const RowsPlan& plan) : channels(plan.channels), values(plan.row_chunks * 2 * plan.channels) {}
  double* first(int64_t chunk) { return values.data() + chunk * 2 * channels; }
  double* second(int64_t chunk) { return first(chunk) + channels; }
};

// Calls f(channel) for all channels once a sweep is complete.
template <class F>
void for_channels(const RowsPlan& plan, const F& f) {
  const auto task = [&](int64_t t) {
    for (int64_t c = t * kMergeChannels; c < std::min(plan.channels, (t + 1) * kMergeChannels); ++c) f(c);
  };
  const int64_t tasks = (plan.channels + kMergeChannels - 1) / kMergeChannels;
  if (plan.row_chunks * plan.channels >= kParallelMerge)
    parallel_tasks(tasks, task);
  else
    for (int64_t t = 0; t < tasks; ++t) task(t);
}

// Merges the moments of `rows` rows of up to ManyChannels::lanes channels into those of the `done` rows before them.
template <class T>
void add_tile_moments(const T* x, int64_t rows, int64_t stride, int width, double* mean, double* m2, int64_t done) {
  using V = Compute<T>;
  V shift[ManyChannels<V>::lanes];
  const int64_t sample = std::min<int64_t>(rows, 8);
  for (int j = 0; j < width; ++j) shift[j] = V(mean[j]);
  if (done == 0) {
    for (int j = 0; j < width; ++j) shift[j] = 0;
    for (int64_t r = 0; r < sample; ++r) {
      for (int j = 0; j < width; ++j) shift[j] += load(x[r * stride + j]) / V(sample);
    }
  }
  Lanes<ManyChannels<V>> lanes;
  add_moments(x, Pieces{rows, stride, width}, ManyChannels<V>{shift, 0}, lanes);

  const double n = double(rows), total = double(done) + n, share = n / total, weight = double(done) * share;
  bool sound = true;
  for (int j = 0; j < width; ++j) sound &= sums_are_sound(lanes.sum[j], lanes.product[j], n);
  if (sound) {
#pragma omp simd
    for (int j = 0; j < width; ++j) {
      const double sum = lanes.sum[j], offset = sum / n, delta = double(shift[j]) + offset - mean[j];
      m2[j] += lanes.product[j] - sum * offset + delta * delta * weight;
      mean[j] += delta * share;
    }
    return;
  }
  for (int j = 0; j < width; ++j) {
    Moments m{double(done), mean[j], m2[j]};
    const Moments exact = exact_moments(x + j, rows, stride);
    m.merge(exact.count, exact.mean, exact.m2);
    mean[j] = m.mean;
    m2[j] = m.m2;
  }
}

// Calls write(destination, index, span) for groups of rows of at most kSegment channels within the block, where span
// covers four rows, or one row four times.
template <class T, class Write>
void write_block(const RowsPlan& plan, T* out, const Block& b, const Write& write) {
  constexpr int kRows = 4;
  alignas(kCacheLine) T tile[kRows * kSegment];
  for (int64_t r = b.r0, rows; r < b.r1; r += rows) {
    rows = b.r1 - r >= kRows ? kRows : 1;
    for (int64_t c = b.c0; c < b.c1; c += kSegment) {
      const int64_t n = std::min(kSegment, b.c1 - c), index = r * plan.channels + c;
      const int64_t in_stride = rows == 1 ? 0 : plan.channels;
      if (!plan.streams) {
        write(out + index, index, c, RowSpan{n, in_stride, in_stride});
        continue;
      }
      write(tile, index, c, RowSpan{n, in_stride, rows == 1 ? 0 : kSegment});
      for (int64_t q = 0; q < rows; ++q)
        stream_copy(out + index + q * plan.channels, tile + q * kSegment, n * sizeof(T));
    }
  }
  if (plan.streams) stream_fence();
}

}  // namespace fusedtricks::cpu

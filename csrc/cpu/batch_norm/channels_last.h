// BatchNorm over rows (channels_last and (N, C) tensors). The matrix is cut into a fixed grid of tasks, row chunks by
// column segments, and each task into blocks of rows that fit into L2. Between the two sweeps the partial sums of all
// tasks are merged in order. The second sweep starts with the last block, which is still in cache, but reads the rows
// of a block upwards: downwards takes twice as long.
#pragma once

#include "cpu/batch_norm/columns.h"
#include "cpu/parallel_tasks.h"

namespace fusedtricks::cpu {

constexpr int64_t kTaskBytes = 192 << 10;   // of a task, unless that gives more than kMaxTasks
constexpr int64_t kBlockBytes = 128 << 10;  // of a block of one tensor
constexpr int64_t kMaxBlockRows = 512;      // that a lane sums in the compute type, before it is added to a double
constexpr int64_t kMaxTasks = 64;
constexpr int64_t kTouchRowBytes = 256;   // shorter rows are read at full speed without touch()
constexpr int64_t kTouchBytes = 8 << 20;  // smaller tensors are in the caches
constexpr int64_t kMergeChannels = 128;   // of a task that merges partial sums
constexpr int64_t kParallelMerge = 8192;  // from so many partial sums on they are merged in parallel

// How the work is cut up. Depends on the shape and the element size only.
struct ChannelsLastPlan {
  int64_t rows, channels, row_chunks, segments, block_rows;
  bool touches, streams;

  ChannelsLastPlan(const Layout& l, int64_t element_size) : rows(l.per_channel()), channels(l.channels) {
    const int64_t bytes = rows * channels * element_size;
    segments = std::max<int64_t>(1, channels / kSegment);
    const int64_t segment_bytes = std::max<int64_t>(1, channels / segments * element_size);
    const int64_t tasks = std::clamp<int64_t>(bytes / kTaskBytes, 1, kMaxTasks);
    row_chunks = std::max<int64_t>(1, std::min((tasks + segments - 1) / segments, rows / 32));
    if (row_chunks > 1) row_chunks = (row_chunks + 1) / 2 * 2;
    block_rows = std::clamp<int64_t>(kBlockBytes / segment_bytes, 16, kMaxBlockRows);
    streams = worth_streaming(rows * channels, element_size);
    touches = bytes >= kTouchBytes && segment_bytes > kTouchRowBytes;
  }

  int64_t tasks() const { return row_chunks * segments; }
  int64_t first_row(int64_t chunk) const { return rows * chunk / row_chunks; }
  int64_t first_channel(int64_t segment) const {
    return segment == segments ? channels : channels * segment / segments / kMergeChannels * kMergeChannels;
  }
};

// Rows [r0, r1) by channels [c0, c1) of a row chunk. `done` rows of the chunk come before.
struct Block {
  int64_t chunk, r0, r1, c0, c1, done;
};

// Calls f(block) for every block; reversed: from the last to the first.
template <class F>
void for_blocks(const ChannelsLastPlan& plan, bool reversed, const F& f) {
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
void touch_block(const ChannelsLastPlan& plan, const T* x, const Block& b) {
  if (!plan.touches) return;
  const int64_t size = sizeof(T);
  touch(x + b.r0 * plan.channels + b.c0, b.r1 - b.r0, plan.channels * size, (b.c1 - b.c0) * size);
}

// Two numbers for each channel of every row chunk: mean and sum of squared deviations, or the sums of the gradients.
struct RowPartials {
  int64_t channels;
  std::vector<double> values;

  explicit RowPartials(const ChannelsLastPlan& plan)
      : channels(plan.channels), values(plan.row_chunks * 2 * plan.channels) {}
  double* first(int64_t chunk) { return values.data() + chunk * 2 * channels; }
  double* second(int64_t chunk) { return first(chunk) + channels; }
};

// Calls f(channel) for all channels, between the sweeps.
template <class F>
void for_channels(const ChannelsLastPlan& plan, const F& f) {
  const auto task = [&](int64_t t) {
    for (int64_t c = t * kMergeChannels; c < std::min(plan.channels, (t + 1) * kMergeChannels); ++c) f(c);
  };
  const int64_t tasks = (plan.channels + kMergeChannels - 1) / kMergeChannels;
  if (plan.row_chunks * plan.channels >= kParallelMerge)
    parallel_tasks(tasks, task);
  else
    for (int64_t t = 0; t < tasks; ++t) task(t);
}

// Writes a block by calls of write(to, index, channel, span) for some rows and at most kSegment channels, with index
// and channel of the first element.
template <class T, class Write>
void write_block(const ChannelsLastPlan& plan, T* out, const Block& b, const Write& write) {
  for (int64_t c = b.c0; c < b.c1; c += kSegment) {
    const int64_t first = b.r0 * plan.channels + c;
    write_rows(out + first, b.r1 - b.r0, plan.channels, std::min(kSegment, b.c1 - c), plan.streams,
               [&](T* to, int64_t i, RowSpan span) { write(to, first + i, c, span); });
  }
}

}  // namespace fusedtricks::cpu

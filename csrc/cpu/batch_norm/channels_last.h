// BatchNorm over rows (channels_last, (N, C)). The matrix is cut into a fixed grid of tasks, row chunks by column
// segments; a task walks blocks that fit L2. All partial sums are merged, in order, between the two sweeps, and the
// second sweep takes the blocks last first. Never the rows: within a block memory is read upwards.
#pragma once

#include "cpu/batch_norm/columns.h"
#include "cpu/parallel_tasks.h"

namespace fusedtricks::cpu {

constexpr int64_t kTaskBytes = 192 << 10;   // from this much work on, a task of its own
constexpr int64_t kBlockBytes = 128 << 10;  // of one tensor, between the touch and its use
constexpr int64_t kMaxBlockRows = 512;      // summed in one lane before they go into double
constexpr int64_t kMaxTasks = 64;
constexpr int64_t kTouchRowBytes = 256;   // shorter rows stream at full speed without the touch
constexpr int64_t kTouchBytes = 8 << 20;  // smaller tensors come out of the caches
constexpr int64_t kMergeChannels = 128;
constexpr int64_t kParallelMerge = 8192;  // partial results from which merging them is shared out

// A function of shape and element size alone.
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

// Rows [r0, r1) by channels [c0, c1) of a task; `done` of the chunk's rows came before.
struct Block {
  int64_t chunk, r0, r1, c0, c1, done;
};

// Calls f(block) for every block; reversed: the newest first.
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

// Two sums a channel of every row chunk: mean and sum of squared deviations, or those of the gradients.
struct RowPartials {
  int64_t channels;
  std::vector<double> values;

  explicit RowPartials(const ChannelsLastPlan& plan)
      : channels(plan.channels), values(plan.row_chunks * 2 * plan.channels) {}
  double* first(int64_t chunk) { return values.data() + chunk * 2 * channels; }
  double* second(int64_t chunk) { return first(chunk) + channels; }
};

// Calls f(channel) for all channels once a sweep is complete.
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

// Calls write(destination, index, channel, span) for groups of rows of the block, at most kSegment channels each.
template <class T, class Write>
void write_block(const ChannelsLastPlan& plan, T* out, const Block& b, const Write& write) {
  for (int64_t c = b.c0; c < b.c1; c += kSegment) {
    const int64_t first = b.r0 * plan.channels + c;
    write_rows(out + first, b.r1 - b.r0, plan.channels, std::min(kSegment, b.c1 - c), plan.streams,
               [&](T* to, int64_t i, RowSpan span) { write(to, first + i, c, span); });
  }
}

}  // namespace fusedtricks::cpu

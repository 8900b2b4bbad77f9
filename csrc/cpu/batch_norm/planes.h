// BatchNorm over planes (NCHW). A task sums a group of neighbouring channels through all samples, then sweeps back over
// them while they are in cache: there are no partial results, and no second parallel region. Only if there are too few
// channels for all threads, groups are cut into parts, and all parts are summed before any is written.
#pragma once

#include "cpu/batch_norm/columns.h"
#include "cpu/parallel_tasks.h"

namespace fusedtricks::cpu {

constexpr int64_t kColumnPlane = 64;  // shorter planes are written as columns, with one row for each sample
constexpr int64_t kShortPlane = 256;  // of shorter planes a group takes as many as fill an output tile
constexpr int64_t kChunk = 4096;  // elements of a channel that are summed in the compute type, then added to a double
constexpr int64_t kFewTasks = 16;

// Samples [n0, n1) at positions [s0, s1): whole planes of some samples, or part of the plane of one.
struct Chunk {
  int64_t n0, n1, s0, s1;
};

// How the work is cut up. Depends on the shape only.
struct PlanesPlan {
  Layout layout;
  int64_t group, groups, samples_per_chunk, chunks_per_plane, chunks, parts;

  explicit PlanesPlan(const Layout& l) : layout(l) {
    const int64_t elements = writes_columns() ? kSegment : kTile;
    group = l.positions < kShortPlane ? std::min(l.channels, elements / l.positions) : 1;
    groups = (l.channels + group - 1) / group;
    samples_per_chunk = std::max<int64_t>(1, kChunk / l.positions);
    chunks_per_plane = l.positions > kChunk ? (l.positions + kChunk - 1) / kChunk : 1;
    chunks = (l.samples + samples_per_chunk - 1) / samples_per_chunk * chunks_per_plane;
    parts = groups >= kFewTasks ? 1 : std::min(chunks, (kFewTasks + groups - 1) / groups);
  }

  bool writes_columns() const { return layout.positions < kColumnPlane; }
  int64_t tasks() const { return groups * parts; }
  int64_t first_channel(int64_t task) const { return task / parts * group; }
  int64_t channel_count(int64_t task) const { return std::min(group, layout.channels - first_channel(task)); }
  int64_t first_chunk(int64_t task) const { return chunks * (task % parts) / parts; }
  int64_t last_chunk(int64_t task) const { return chunks * (task % parts + 1) / parts; }

  Chunk chunk(int64_t i) const {
    const int64_t n = i / chunks_per_plane * samples_per_chunk, s = i % chunks_per_plane * kChunk;
    return {n, std::min(layout.samples, n + samples_per_chunk), s,
            chunks_per_plane == 1 ? layout.positions : std::min(layout.positions, s + kChunk)};
  }
  // One channel's elements of a chunk.
  Runs runs(const Chunk& k) const { return {k.n1 - k.n0, sample_stride(), k.s1 - k.s0}; }
  int64_t sample_stride() const { return layout.channels * layout.positions; }
  // Index of a task's partial results, one for each channel of its group.
  int64_t slot(int64_t task) const { return task * group; }
  int64_t slot_of(int64_t c, int64_t part) const { return (c / group * parts + part) * group + c % group; }
  int64_t slots() const { return tasks() * group; }
  int64_t index(int64_t n, int64_t c, int64_t s) const { return (n * layout.channels + c) * layout.positions + s; }
};

// The coefficients of a task's channels, repeated for every column.
template <class V>
Coefficients<V> column_coefficients(const PlanesPlan& plan, int64_t task, const Coefficients<V>& channels) {
  const int64_t S = plan.layout.positions, c0 = plan.first_channel(task), count = plan.channel_count(task);
  Coefficients<V> columns(count * S);
  for (int64_t c = 0; c < count; ++c) {
    const OneChannel<V> one = channels.one(c0 + c);
    for (int f = 0; f < kCoefficients; ++f) std::fill_n(&columns.at(Coefficient(f), c * S), S, one.value[f]);
  }
  return columns;
}

// Writes all elements of a task by calls of write_one(to, index, span, channel), or for the shortest planes of
// write_many(to, index, span, columns), with the index of the span's first element. Starts with the last chunk, and
// prefetches the inputs.
template <class T, class V, class WriteOne, class WriteMany>
void write_planes(const PlanesPlan& plan, T* out, int64_t task, bool stream, const Coefficients<V>& coefficients,
                  std::initializer_list<const T*> inputs, const WriteOne& write_one, const WriteMany& write_many) {
  const int64_t c0 = plan.first_channel(task), count = plan.channel_count(task);
  const Coefficients<V> columns =
      plan.writes_columns() ? column_coefficients(plan, task, coefficients) : Coefficients<V>(0);
  for (int64_t i = plan.last_chunk(task); i-- > plan.first_chunk(task);) {
    const Chunk k = plan.chunk(i);
    if (plan.writes_columns()) {
      const int64_t first = plan.index(k.n0, c0, 0);
      write_rows(out + first, k.n1 - k.n0, plan.sample_stride(), columns.channels, stream,
                 [&](T* to, int64_t at, RowSpan span) { write_many(to, first + at, span, columns.many()); });
      continue;
    }
    for (int64_t n = k.n1; n-- > k.n0;) {
      const int64_t first = plan.index(n, c0, k.s0), run = k.s1 - k.s0;
      for (const T* input : inputs) {
        if (input) prefetch(input + first - prefetch_distance<T>(count * run) * plan.sample_stride(), count * run);
      }
      emit(out + first, count * run, stream, [&](T* to, int64_t at, int64_t length) {
        if (count == 1) return write_one(to, first + at, RowSpan{length, 0, 0}, coefficients.one(c0));
        for (int64_t c = 0; c < count; ++c) {
          write_one(to + c * run, first + c * run, RowSpan{run, 0, 0}, coefficients.one(c0 + c));
        }
      });
    }
  }
  if (stream) stream_fence();
}

// Runs sum(task), finish(channel) and write(task), so that a channel is finished when its sums are complete, and
// written after that. If tasks hold whole channels, each thread does all three for one task after the other.
template <class Sum, class Finish, class Write>
void for_planes(const PlanesPlan& plan, const Sum& sum, const Finish& finish, const Write& write) {
  if (plan.parts == 1) {
    parallel_tasks(plan.tasks(), [&](int64_t task) {
      sum(task);
      for (int64_t c = 0; c < plan.channel_count(task); ++c) finish(plan.first_channel(task) + c);
      write(task);
    });
    return;
  }
  parallel_tasks(plan.tasks(), sum);
  for (int64_t c = 0; c < plan.layout.channels; ++c) finish(c);
  parallel_tasks_reversed(plan.tasks(), write);
}

}  // namespace fusedtricks::cpu

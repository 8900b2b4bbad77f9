// What forward and backward of batch_norm_act_max_pool2d share.
#pragma once

#include "calls/batch_norm_pool.h"
#include "cpu/batch_norm/channels_last.h"
#include "cpu/batch_norm/planes.h"
#include "cpu/batch_norm_pool/maxima.h"

namespace fusedtricks::cpu {

// What is pooled at a time: the plane of one channel, then inner is 1, or a sample with all its channels innermost.
struct PooledImage {
  MaxPool pool;
  int64_t inner;

  bool is_plane() const { return inner == 1; }
  int64_t row() const { return pool.width.size * inner; }
  int64_t output_row() const { return pool.width.outputs * inner; }
  int64_t size() const { return pool.height.size * row(); }
  int64_t output_size() const { return pool.height.outputs * output_row(); }
};

// Cuts the lines of all samples, `lines` each, into `parts` parts, and calls f(sample, begin, end) for the lines
// [begin, end) of each sample in one part; reversed: from the last sample to the first.
template <class F>
void for_lines(int64_t samples, int64_t lines, int64_t part, int64_t parts, bool reversed, const F& f) {
  const int64_t first = samples * lines * part / parts, last = samples * lines * (part + 1) / parts;
  const int64_t first_sample = first / lines, count = (last + lines - 1) / lines - first_sample;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t sample = first_sample + (reversed ? count - 1 - i : i), start = sample * lines;
    f(sample, std::max(first, start) - start, std::min(last, start + lines) - start);
  }
}

// How many parts to cut a channels_last tensor into.
inline int64_t row_parts(const Layout& layout, int64_t lines, int64_t element_size) {
  const int64_t bytes = layout.per_channel() * layout.channels * element_size;
  return std::min(layout.samples * lines, std::clamp<int64_t>(bytes / kTaskBytes, 1, kMaxTasks));
}

}  // namespace fusedtricks::cpu

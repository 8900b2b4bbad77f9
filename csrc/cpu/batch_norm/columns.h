// Writing rows whose neighbouring elements belong to different channels: the rows of a block of a channels_last tensor,
// or the planes of some channels, a row for each sample.
#pragma once

#include "cpu/batch_norm/spans.h"
#include "cpu/simd/streams.h"

namespace fusedtricks::cpu {

constexpr int64_t kSegment = 1024;  // columns of a row of the output tile

// Writes `rows` rows of n <= kSegment elements, `stride` apart in memory, by calls of write(to, index, span) with the
// index of the first element and a span of four rows, or of one row four times. One row goes by way of a tile: it may
// be computed from what it overwrites, and must not be computed from its own results.
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

// Max-pooling windows over the two axes of an image.
//
// Along an axis a window has `kernel` places that are `dilation` apart, and the first place of window o is at position
// o * stride - padding. The places of a window are numbered row by row, row * width.kernel + column; argmax holds this
// number in one byte.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace fusedtricks {

constexpr int64_t kMaxPlaces = 256;

struct PoolAxis {
  int64_t size, outputs, kernel, stride, padding, dilation;

  // Positions from the first place of a window to its last, both included.
  FT_INLINE int64_t extent() const { return (kernel - 1) * dilation + 1; }
  FT_INLINE int64_t start(int64_t o) const { return o * stride - padding; }
  // Places [first_place, end_place) of a window lie inside the image. There is at least one.
  FT_INLINE int64_t first_place(int64_t o) const { return start(o) < 0 ? (dilation - 1 - start(o)) / dilation : 0; }
  FT_INLINE int64_t end_place(int64_t o) const {
    const int64_t inside = (size - start(o) + dilation - 1) / dilation;
    return inside < kernel ? inside : kernel;
  }
  // Windows [first_whole, end_whole) lie entirely inside the image.
  FT_INLINE int64_t first_whole() const {
    const int64_t first = (padding + stride - 1) / stride;
    return first < outputs ? first : outputs;
  }
  FT_INLINE int64_t end_whole() const {
    const int64_t room = size + padding - extent(), end = room < 0 ? 0 : room / stride + 1;
    return end < first_whole() ? first_whole() : end < outputs ? end : outputs;
  }
  // The first window that ends at position i or behind it.
  FT_INLINE int64_t first_reaching(int64_t i) const {
    const int64_t before = i + padding - extent();
    return before < 0 ? 0 : before / stride + 1;
  }
};

struct MaxPool {
  PoolAxis height, width;

  FT_INLINE int64_t places() const { return height.kernel * width.kernel; }
  FT_INLINE int64_t outputs() const { return height.outputs * width.outputs; }
};

}  // namespace fusedtricks

// Where the windows of max-pooling lie, for threads that begin with an output or with an element of the input.
#pragma once

#include "core/pool_window.h"
#include "cuda/device/division.cuh"
#include "cuda/device/platform.cuh"

namespace fusedtricks::cuda {

// A position in a tensor of images. In a channels_last tensor an image has all channels; otherwise every plane counts
// as an image, and the channel is 0.
struct Position {
  int64_t image, channel, row, column;

  // The position of the element at an index.
  __device__ __forceinline__ Position(int64_t index, bool channels_last, int64_t channels, int64_t height,
                                      int64_t width) {
    const int64_t inner = channels_last ? channels : 1, position = quotient(index, inner),
                  line = quotient(position, width);
    channel = index - position * inner;
    column = position - line * width;
    image = quotient(line, height);
    row = line - image * height;
  }

  // Moves on to the next element in memory.
  __device__ __forceinline__ void advance(bool channels_last, int64_t channels, int64_t height, int64_t width) {
    if (channels_last && ++channel < channels) return;
    channel = 0;
    if (++column < width) return;
    column = 0;
    if (++row < height) return;
    row = 0;
    ++image;
  }
};

// Calls f(window, place) for the windows along an axis that have the position at one of their places.
template <class F>
__device__ __forceinline__ void for_windows(const PoolAxis& axis, int64_t position, const F& f) {
  const int64_t extent = axis.extent(), last = quotient(position + axis.padding, axis.stride);
  for (int64_t o = last < axis.outputs ? last : axis.outputs - 1; o >= 0; --o) {
    const int64_t offset = position - axis.start(o);
    if (offset >= extent) return;
    const int64_t place = axis.dilation == 1 ? offset : quotient(offset, axis.dilation);
    if (place * axis.dilation == offset) f(o, place);
  }
}

// The same for both axes: f(number of the window in its image, place in the window).
template <class F>
__device__ __forceinline__ void for_windows(const MaxPool& pool, const Position& at, const F& f) {
  for_windows(pool.height, at.row, [&](int64_t o, int64_t r) {
    for_windows(pool.width, at.column,
                [&](int64_t i, int64_t c) { f(o * pool.width.outputs + i, int(r * pool.width.kernel + c)); });
  });
}

}  // namespace fusedtricks::cuda

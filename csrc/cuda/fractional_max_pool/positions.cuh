// Where things lie in the tensors of fractional max-pooling, for kernels whose threads have one element or window each.
#pragma once

#include "calls/fractional_max_pool.h"
#include "cuda/device/division.cuh"
#include "cuda/device/walk.cuh"

namespace fusedtricks::cuda {

// The value for a dimension that is only known at run time. An index would put the array into local memory.
FT_INLINE int64_t of_dimension(const int64_t (&values)[kDimensions], int dimension) {
  const int64_t depth = values[kDepth], height = values[kHeight], width = values[kWidth];
  return dimension == kWidth ? width : dimension == kHeight ? height : depth;
}

__device__ __forceinline__ int64_t thread_index() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

template <class Kernel, class... Arguments>
void launch_threads(Kernel* kernel, int64_t threads, Arguments... arguments) {
  launch(kernel, std::max<int64_t>(1, ceil_div(threads, kThreads)), kThreads, 0, arguments...);
}

// Plane and coordinates of the element at an index of a tensor. lengths: of the planes' dimensions; elements: of a
// plane.
struct Element {
  int64_t plane, at[kDimensions];

  FT_INLINE Element(const PoolShape& shape, const int64_t (&lengths)[kDimensions], int64_t elements, int64_t index) {
    const Division outer(index, shape.channels_last ? shape.channels : elements);
    int64_t element = outer.remainder;
    plane = outer.quotient;
    if (shape.channels_last) {
      const Division sample(outer.quotient, elements);
      element = sample.remainder;
      plane = sample.quotient * shape.channels + outer.remainder;
    }
    const Division row(element, lengths[kWidth]), slice(row.quotient, lengths[kHeight]);
    at[kDepth] = slice.quotient;
    at[kHeight] = slice.remainder;
    at[kWidth] = row.remainder;
  }
};

// Index of the first element of a plane, in a tensor whose planes have that many elements.
FT_INLINE int64_t plane_start(const PoolShape& shape, int64_t plane, int64_t elements) {
  if (!shape.channels_last) return plane * elements;
  const Division d(plane, shape.channels);
  return d.quotient * elements * shape.channels + d.remainder;
}

// From an element of a plane to the next one.
FT_INLINE int64_t step(const PoolShape& shape) { return shape.channels_last ? shape.channels : 1; }

// The places of the maxima, in numbers of shape.place_bytes().
__device__ __forceinline__ int32_t load_place(const void* places, int bytes, int64_t i) {
  if (bytes == 1) return static_cast<const uint8_t*>(places)[i];
  return bytes == 2 ? static_cast<const uint16_t*>(places)[i] : static_cast<const int32_t*>(places)[i];
}

__device__ __forceinline__ void store_place(int32_t place, void* places, int bytes, int64_t i) {
  if (bytes == 1)
    static_cast<uint8_t*>(places)[i] = uint8_t(place);
  else if (bytes == 2)
    static_cast<uint16_t*>(places)[i] = uint16_t(place);
  else
    static_cast<int32_t*>(places)[i] = place;
}

}  // namespace fusedtricks::cuda

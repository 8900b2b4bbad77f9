// Fractional max-pooling with an activation. In the forward a thread has one window. In the backward it has one
// position and looks at the windows that cover it.
#include <limits>

#include "core/dtypes.h"
#include "cuda/device/activation_packs.cuh"
#include "cuda/fractional_max_pool/tables.cuh"

namespace fusedtricks::cuda {
namespace {

template <class V>
__device__ __forceinline__ V activated(const Activation& activation, V z) {
  V values[1] = {z};
  activate(AnyActivation<V>{activation}, values);
  return values[0];
}

// The maximum of a window is the first of its largest values, or the last NaN if there is any, as in stock.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pool_windows(PoolShape shape, PlaneTable starts, Activation act, const T* x, T* y, void* places) {
  using V = OpMath<T>;
  const int64_t index = thread_index(), elements = shape.windows();
  if (index >= shape.planes() * elements) return;
  const Element window(shape, shape.output, elements, index);
  int64_t first = 0;
#pragma unroll
  for (int d = 0; d < kDimensions; ++d) {
    first = first * shape.input[d] + starts.of(window.plane, d)[window.at[d] * starts.step()];
  }
  const int64_t next = step(shape);
  const T* corner = x + plane_start(shape, window.plane, shape.positions()) + first * next;
  V best = -std::numeric_limits<V>::infinity();
  int32_t found = 0, place = 0;
  for (int64_t d = 0; d < shape.kernel[kDepth]; ++d) {
    for (int64_t h = 0; h < shape.kernel[kHeight]; ++h) {
      const T* row = corner + (d * shape.input[kHeight] + h) * shape.input[kWidth] * next;
      for (int64_t w = 0; w < shape.kernel[kWidth]; ++w, ++place) {
        const V v = load(row[w * next]);
        if (v > best || v != v) {
          best = v;
          found = place;
        }
      }
    }
  }
  y[index] = store<T>(activated(act, best));
  store_place(found, places, shape.place_bytes(), index);
}

// The windows that cover a position, along one dimension: from the first that ends behind the position on, as long as
// they do not begin behind it.
struct Covering {
  const int32_t* start;
  int64_t position, step, first, end;

  __device__ __forceinline__ Covering(const PoolShape& shape, const PlaneTable& starts, const PlaneTable& firsts,
                                      const Element& element, int d)
      : start(starts.of(element.plane, d)),
        position(element.at[d]),
        step(starts.step()),
        first(firsts.of(element.plane, d)[element.at[d] * firsts.step()]),
        end(shape.output[d]) {}

  __device__ __forceinline__ bool has(int64_t window) const { return window < end && start[window * step] <= position; }
  // Where in the window the position lies.
  __device__ __forceinline__ int64_t place(int64_t window) const { return position - start[window * step]; }
};

// dx at a position = the sum of dy * act'(y) over the windows that have their maximum there, in their order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_gradients(PoolShape shape, PlaneTable starts, PlaneTable firsts, Activation act, const T* dy, const T* y,
                     const void* places, T* dx) {
  using V = OpMath<T>;
  const int64_t index = thread_index(), elements = shape.positions();
  if (index >= shape.planes() * elements) return;
  const Element element(shape, shape.input, elements, index);
  const Covering depth(shape, starts, firsts, element, kDepth), height(shape, starts, firsts, element, kHeight),
      width(shape, starts, firsts, element, kWidth);
  const int64_t plane = plane_start(shape, element.plane, shape.windows()), next = step(shape);
  const int bytes = shape.place_bytes();
  V sum = 0;
  for (int64_t d = depth.first; depth.has(d); ++d) {
    for (int64_t h = height.first; height.has(h); ++h) {
      const int64_t row = (d * shape.output[kHeight] + h) * shape.output[kWidth];
      const int64_t place = (depth.place(d) * shape.kernel[kHeight] + height.place(h)) * shape.kernel[kWidth];
      for (int64_t w = width.first; width.has(w); ++w) {
        const int64_t window = plane + (row + w) * next;
        if (load_place(places, bytes, window) != place + width.place(w)) continue;
        V dz[1] = {load(dy[window])};
        if (y) {
          const V result[1] = {load(y[window])};
          multiply_by_derivative_of_result(AnyActivation<V>{act}, dz, result);
        }
        sum += dz[0];
      }
    }
  }
  dx[index] = store<T>(sum);
}

__global__ void __launch_bounds__(kThreads)
    write_indices(PoolShape shape, PlaneTable starts, const void* places, int64_t* indices) {
  const int64_t index = thread_index(), elements = shape.windows();
  if (index >= shape.planes() * elements) return;
  const Element window(shape, shape.output, elements, index);
  const int32_t place = load_place(places, shape.place_bytes(), index);
  const Division row(place, shape.kernel[kWidth]), slice(row.quotient, shape.kernel[kHeight]);
  const int64_t within[kDimensions] = {slice.quotient, slice.remainder, row.remainder};
  int64_t position = 0;
#pragma unroll
  for (int d = 0; d < kDimensions; ++d) {
    position = position * shape.input[d] + starts.of(window.plane, d)[window.at[d] * starts.step()] + within[d];
  }
  indices[index] = position;
}

void fractional_max_pool_forward(const PoolCall& call, const void* x, void* y, void* places) {
  const PlaneTable starts = make_starts(call);
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_threads(pool_windows<T>, call.shape.planes() * call.shape.windows(), call.shape, starts, call.act,
                   static_cast<const T*>(x), static_cast<T*>(y), places);
  });
}

void fractional_max_pool_backward(const PoolCall& call, const void* dy, const void* y, const void* places, void* dx) {
  const PlaneTable starts = make_starts(call), firsts = make_firsts(call, starts);
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_threads(gather_gradients<T>, call.shape.planes() * call.shape.positions(), call.shape, starts, firsts,
                   call.act, static_cast<const T*>(dy), static_cast<const T*>(y), places, static_cast<T*>(dx));
  });
}

void fractional_max_pool_indices(const PoolCall& call, const void* places, int64_t* indices) {
  const PlaneTable starts = make_starts(call);
  launch_threads(write_indices, call.shape.planes() * call.shape.windows(), call.shape, starts, places, indices);
}

const Provided provided[] = {
    {kernels::fractional_max_pool_forward, fractional_max_pool_forward},
    {kernels::fractional_max_pool_backward, fractional_max_pool_backward},
    {kernels::fractional_max_pool_indices, fractional_max_pool_indices},
};

}  // namespace
}  // namespace fusedtricks::cuda

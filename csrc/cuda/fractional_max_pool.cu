// Fractional max-pooling with an activation: a thread has one window, and in the backward one position, which looks at
// the windows that cover it. Tables say where windows begin and which is the first to cover a position.
#include "calls/fractional_max_pool.h"

#include <algorithm>
#include <limits>

#include "core/dtypes.h"
#include "cuda/device/activation_packs.cuh"
#include "cuda/dropout/mask.cuh"
#include "cuda/device/walk.cuh"

namespace fusedtricks::cuda {
namespace {

// a / by and a % by, in 32 bits where both fit: the hardware has no division, and that of 64 bits is long.
struct Division {
  int64_t quotient, remainder;

  FT_INLINE Division(int64_t a, int64_t by) {
    if ((a | by) >> 32 == 0) {
      quotient = uint32_t(a) / uint32_t(by);
      remainder = uint32_t(a) % uint32_t(by);
    } else {
      quotient = a / by;
      remainder = a % by;
    }
  }
};

// The value of a dimension that is not known before the kernel runs, without an array in local memory.
FT_INLINE int64_t of_dimension(const int64_t (&values)[kDimensions], int dimension) {
  const int64_t depth = values[kDepth], height = values[kHeight], width = values[kWidth];
  return dimension == kWidth ? width : dimension == kHeight ? height : depth;
}

// Numbers of every plane: those of a dimension follow each other, and planes or numbers are innermost as in the tensor.
struct PlaneTable {
  int32_t* data;
  int64_t planes, before[kDimensions], entries;
  bool rows;

  PlaneTable(const PoolShape& shape, const int64_t (&lengths)[kDimensions], int32_t* data_)
      : data(data_), planes(shape.planes()), entries(0), rows(shape.rows) {
    for (int d = 0; d < kDimensions; ++d) {
      before[d] = entries;
      entries += lengths[d];
    }
  }

  FT_INLINE int64_t count() const { return planes * entries; }
  FT_INLINE int32_t* of(int64_t plane, int dimension) const {
    const int64_t first = of_dimension(before, dimension);
    return rows ? data + first * planes + plane : data + plane * entries + first;
  }
  FT_INLINE int64_t step() const { return rows ? planes : 1; }
};

struct TableEntry {
  int64_t plane, number;
  int dimension;

  FT_INLINE TableEntry(const PlaneTable& table, int64_t index) {
    const Division d(index, table.rows ? table.planes : table.entries);
    plane = table.rows ? d.remainder : d.quotient;
    const int64_t entry = table.rows ? d.quotient : d.remainder;
    dimension = entry >= table.before[kWidth] ? kWidth : entry >= table.before[kHeight] ? kHeight : kDepth;
    number = entry - of_dimension(table.before, dimension);
  }
};

__device__ __forceinline__ int64_t thread_index() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

template <class T>
struct GivenSamples {
  using Arithmetic = OpMath<T>;  // as stock's on a GPU

  const T* values;
  int64_t* record;  // of a seed; there is none

  __device__ __forceinline__ GivenSamples get() const {
    if (record && thread_index() < 2) record[thread_index()] = 0;
    return *this;
  }
  __device__ __forceinline__ Arithmetic sample(int64_t index) const { return load(values[index]); }
};

struct DrawnSamples {
  using Arithmetic = double;

  struct Stream {
    Mask mask;
    __device__ __forceinline__ double sample(int64_t index) const {
      const PhiloxBlock block = philox_block(mask.seed, mask.offset, uint64_t(index) / 4);
      return pool_sample(word_at(block, int(index % 4)));
    }
  };

  MaskSource source;  // its threshold is not used

  __device__ __forceinline__ Stream get() const { return {source.get()}; }
};

template <class Samples>
__global__ void __launch_bounds__(kThreads) write_starts(PoolShape shape, PlaneTable starts, Samples source) {
  const auto samples = source.get();
  const int64_t index = thread_index();
  if (index >= starts.count()) return;
  const TableEntry entry(starts, index);
  const int d = entry.dimension;
  const bool pooled = d > kDepth || shape.rank == 3;
  const int64_t number = entry.plane * shape.rank + (pooled ? shape.sample_of(d) : 0);
  const WindowStarts<typename Samples::Arithmetic> start(samples.sample(number), of_dimension(shape.input, d),
                                                         of_dimension(shape.output, d), of_dimension(shape.kernel, d));
  starts.of(entry.plane, d)[entry.number * starts.step()] = int32_t(start(entry.number));
}

// The first window that ends beyond each position; there may be none.
__global__ void __launch_bounds__(kThreads) write_firsts(PoolShape shape, PlaneTable starts, PlaneTable firsts) {
  const int64_t index = thread_index();
  if (index >= firsts.count()) return;
  const TableEntry entry(firsts, index);
  const int d = entry.dimension;
  const int32_t* start = starts.of(entry.plane, d);
  int64_t first = 0, last = of_dimension(shape.output, d), kernel = of_dimension(shape.kernel, d);
  while (first < last) {
    const int64_t middle = (first + last) / 2;
    if (start[middle * starts.step()] + kernel > entry.number)
      last = middle;
    else
      first = middle + 1;
  }
  firsts.of(entry.plane, d)[entry.number * firsts.step()] = int32_t(first);
}

// An element of a tensor whose planes have that many elements of these lengths, by its place in memory.
struct Element {
  int64_t plane, at[kDimensions];

  FT_INLINE Element(const PoolShape& shape, const int64_t (&lengths)[kDimensions], int64_t elements, int64_t index) {
    const Division outer(index, shape.rows ? shape.channels : elements);
    int64_t element = outer.remainder;
    plane = outer.quotient;
    if (shape.rows) {
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

// Element 0 of a plane of that many elements; the next one is step(shape) further.
FT_INLINE int64_t plane_start(const PoolShape& shape, int64_t plane, int64_t elements) {
  if (!shape.rows) return plane * elements;
  const Division d(plane, shape.channels);
  return d.quotient * elements * shape.channels + d.remainder;
}

FT_INLINE int64_t step(const PoolShape& shape) { return shape.rows ? shape.channels : 1; }

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

template <class V>
__device__ __forceinline__ V activated(const Activation& activation, V z) {
  V values[1] = {z};
  activate(AnyActivation<V>{activation}, values);
  return values[0];
}

// The first of the largest values counts; where there is a NaN, the last of those.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pool(PoolShape shape, PlaneTable starts, Activation act, const T* x, T* y, void* places) {
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

// The windows of one dimension that cover a position: from the first that ends beyond it, as long as they begin before.
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

// dx = sum of dy * act'(y) over the windows whose maximum lies here, in their order.
template <class T>
__global__ void __launch_bounds__(kThreads) gather(PoolShape shape, PlaneTable starts, PlaneTable firsts,
                                                   Activation act, const T* dy, const T* y, const void* places, T* dx) {
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

template <class Kernel, class... Arguments>
void launch_threads(Kernel* kernel, int64_t threads, Arguments... arguments) {
  launch(kernel, std::max<int64_t>(1, ceil_div(threads, kThreads)), kThreads, 0, arguments...);
}

PlaneTable starts_table(const PoolCall& call) {
  return {call.shape, call.shape.output, static_cast<int32_t*>(call.workspace)};
}

// Where the windows begin; a mask source to draw from is used, and recorded, where no samples are given.
PlaneTable make_starts(const PoolCall& call, const MaskSource& source) {
  const PlaneTable starts = starts_table(call);
  if (!call.samples.given) {
    launch_threads(write_starts<DrawnSamples>, starts.count(), call.shape, starts, DrawnSamples{source});
    return starts;
  }
  visit_dtype(call.samples.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_threads(write_starts<GivenSamples<T>>, starts.count(), call.shape, starts,
                   GivenSamples<T>{static_cast<const T*>(call.samples.given), source.record});
  });
  return starts;
}

PlaneTable make_starts(const PoolCall& call, const int64_t* rng_state) {
  return make_starts(call, MaskSource{{}, rng_state, nullptr, 0, false});
}

}  // namespace
}  // namespace fusedtricks::cuda

namespace fusedtricks::backend {

int64_t fractional_max_pool_workspace(const PoolShape& shape, bool gradient) {
  int64_t entries = 0;
  for (int d = 0; d < kDimensions; ++d) entries += shape.output[d] + (gradient ? shape.input[d] : 0);
  return shape.planes() * entries * int64_t(sizeof(int32_t));
}

void fractional_max_pool_forward(const PoolCall& call, std::optional<int64_t> seed, const void* x, void* y,
                                 void* places, int64_t* rng_state) {
  const bool draws = !call.samples.given && !seed;
  const auto source = draws ? cuda::draw_random_source() : cuda::RandomSource{uint64_t(seed.value_or(0)), 0};
  const cuda::PlaneTable starts = cuda::make_starts(call, cuda::MaskSource{source, nullptr, rng_state, 0, false});
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    cuda::launch_threads(cuda::pool<T>, call.shape.planes() * call.shape.windows(), call.shape, starts, call.act,
                         static_cast<const T*>(x), static_cast<T*>(y), places);
  });
}

void fractional_max_pool_backward(const PoolCall& call, const void* dy, const void* y, const void* places,
                                  const int64_t* rng_state, void* dx) {
  const PoolShape& shape = call.shape;
  const cuda::PlaneTable starts = cuda::make_starts(call, rng_state);
  const cuda::PlaneTable firsts(shape, shape.input, starts.data + starts.count());
  cuda::launch_threads(cuda::write_firsts, firsts.count(), shape, starts, firsts);
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    cuda::launch_threads(cuda::gather<T>, shape.planes() * shape.positions(), shape, starts, firsts, call.act,
                         static_cast<const T*>(dy), static_cast<const T*>(y), places, static_cast<T*>(dx));
  });
}

void fractional_max_pool_indices(const PoolCall& call, const void* places, const int64_t* rng_state, int64_t* indices) {
  const cuda::PlaneTable starts = cuda::make_starts(call, rng_state);
  cuda::launch_threads(cuda::write_indices, call.shape.planes() * call.shape.windows(), call.shape, starts, places,
                       indices);
}

}  // namespace fusedtricks::backend

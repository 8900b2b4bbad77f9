#include "cuda/fractional_max_pool/tables.cuh"

#include "core/dtypes.h"
#include "cuda/dropout/mask.cuh"

namespace fusedtricks::cuda {
namespace {

// What an entry of a table stands for: which number of which dimension of which plane.
struct TableEntry {
  int64_t plane, number;
  int dimension;

  FT_INLINE TableEntry(const PlaneTable& table, int64_t index) {
    const Division d(index, table.channels_last ? table.planes : table.entries);
    plane = table.channels_last ? d.remainder : d.quotient;
    const int64_t entry = table.channels_last ? d.quotient : d.remainder;
    dimension = entry >= table.before[kWidth] ? kWidth : entry >= table.before[kHeight] ? kHeight : kDepth;
    number = entry - of_dimension(table.before, dimension);
  }
};

template <class T>
struct GivenSamples {
  using Arithmetic = OpMath<T>;  // as in stock's CUDA kernel

  const T* values;

  __device__ __forceinline__ GivenSamples open(const MaskSource&) const { return *this; }
  __device__ __forceinline__ Arithmetic sample(int64_t index) const { return load(values[index]); }
};

struct DrawnSamples {
  using Arithmetic = double;

  struct Stream {
    uint64_t seed, offset;

    __device__ __forceinline__ double sample(int64_t index) const {
      const PhiloxBlock block = philox_block(seed, offset, uint64_t(index) / 4);
      return pool_sample(word_at(block, int(index % 4)));
    }
  };

  __device__ __forceinline__ Stream open(const MaskSource& random) const { return {random.seed(), random.offset()}; }
};

template <class Samples>
__global__ void __launch_bounds__(kThreads)
    write_starts(PoolShape shape, PlaneTable starts, MaskSource random, Samples source) {
  const int64_t index = thread_index();
  if (index == 0) random.write_record();
  if (index >= starts.count()) return;
  const auto samples = source.open(random);
  const TableEntry entry(starts, index);
  const int d = entry.dimension;
  const bool pooled = d > kDepth || shape.rank == 3;
  const int64_t number = entry.plane * shape.rank + (pooled ? shape.sample_of(d) : 0);
  const WindowStarts<typename Samples::Arithmetic> start(samples.sample(number), of_dimension(shape.input, d),
                                                         of_dimension(shape.output, d), of_dimension(shape.kernel, d));
  starts.of(entry.plane, d)[entry.number * starts.step()] = int32_t(start(entry.number));
}

__global__ void __launch_bounds__(kThreads) write_firsts(PoolShape shape, PlaneTable starts, PlaneTable firsts) {
  const int64_t index = thread_index();
  if (index >= firsts.count()) return;
  const TableEntry entry(firsts, index);
  const int d = entry.dimension;
  const int32_t* start = starts.of(entry.plane, d);
  // Windows begin in order, so the first one that ends behind the position is found by bisection.
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

template <class Samples>
void launch_starts(const PoolCall& call, const PlaneTable& starts, const Samples& samples) {
  launch_threads(write_starts<Samples>, starts.count(), call.shape, starts, call.random, samples);
}

int64_t fractional_max_pool_workspace(const PoolShape& shape, bool gradient) {
  int64_t entries = 0;
  for (int d = 0; d < kDimensions; ++d) entries += shape.output[d] + (gradient ? shape.input[d] : 0);
  return shape.planes() * entries * int64_t(sizeof(int32_t));
}

const Provided provided(kernels::fractional_max_pool_workspace, fractional_max_pool_workspace);

}  // namespace

PlaneTable make_starts(const PoolCall& call) {
  const PlaneTable starts(call.shape, call.shape.output, static_cast<int32_t*>(call.workspace));
  if (!call.samples.given) {
    launch_starts(call, starts, DrawnSamples{});
    return starts;
  }
  visit_dtype(call.samples.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_starts(call, starts, GivenSamples<T>{static_cast<const T*>(call.samples.given)});
  });
  return starts;
}

PlaneTable make_firsts(const PoolCall& call, const PlaneTable& starts) {
  const PlaneTable firsts(call.shape, call.shape.input, starts.data + starts.count());
  launch_threads(write_firsts, firsts.count(), call.shape, starts, firsts);
  return firsts;
}

}  // namespace fusedtricks::cuda

// A bias that is added to packs, and its gradient: for each of its values the sum over that value's elements.
#pragma once

#include "calls/act_dropout.h"
#include "cuda/device/reduce.cuh"

namespace fusedtricks::cuda {

template <class V>
struct Bias {
  const V* values;  // may be null
  BiasPlaces places;

  // Adds the bias to n neighbouring elements, with two divisions for all of them.
  template <int n>
  __device__ __forceinline__ void add(int64_t index, V (&z)[n]) const {
    if (!values) return;
    int64_t number = index / places.inner % places.count, rest = index % places.inner;
#pragma unroll
    for (int e = 0; e < n; ++e) {
      z[e] += values[number];
      if (++rest == places.inner) {
        rest = 0;
        if (++number == places.count) number = 0;
      }
    }
  }
};

template <class V>
struct Sum {
  V value = 0;

  FT_INLINE void merge(const Sum& other) { value += other.value; }
};

// The partial sums of every value of the bias: one row for each part of the tensor.
template <class V>
struct BiasPartials {
  V* values;
  int64_t count;

  FT_INLINE V& at(int64_t row, int64_t number) const { return values[row * count + number]; }
};

// Merges the sums of a block's threads and writes them as partial sums. A chunk fills plan.fold rows of them at once,
// because the channels of a fold lie next to each other, as its rows do.
template <class V, class Walk>
__device__ void leave_bias_sums(Sum<V> (&sums)[Walk::channels], const typename Walk::Plan& plan, const Walk& walk,
                                int64_t chunk, const BiasPartials<V>& out, void* memory) {
  merge_threads(sums, plan.lanes, memory);
  if (int(threadIdx.x) >= plan.lanes) return;
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) {
    if (walk.channel + c < plan.channels) out.at(chunk * plan.fold, walk.channel + c) = sums[c].value;
  }
}

// dbias from the partial sums. A block has 32 values, and its warps take the rows in turn: with a single warp for 32
// values most of the GPU would be idle.
template <class V>
__global__ void __launch_bounds__(kThreads) merge_bias_sums(int64_t rows, BiasPartials<V> partials, V* dbias) {
  constexpr int width = 32, teams = kThreads / width;
  const int64_t number = int64_t(blockIdx.x) * width + threadIdx.x % width;
  Sum<double> sums[1];
  for (int64_t row = threadIdx.x / width; number < partials.count && row < rows; row += teams) {
    sums[0].value += double(partials.at(row, number));
  }
  merge_threads(sums, width, dynamic_shared<char>());
  if (threadIdx.x < width && number < partials.count) dbias[number] = V(sums[0].value);
}

template <class V>
void finish_bias(int64_t rows, const BiasPartials<V>& partials, V* dbias) {
  launch(merge_bias_sums<V>, ceil_div(partials.count, 32), kThreads, merge_bytes<Sum<double>>(1), rows, partials,
         dbias);
}

}  // namespace fusedtricks::cuda

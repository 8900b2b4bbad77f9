// Elementwise kernels over n elements that lie next to each other: a block takes a tile of packs, and each of its
// threads kFlatUnroll packs of that tile.
#pragma once

#include <algorithm>

#include "core/dtypes.h"
#include "cuda/device/walk.cuh"

namespace fusedtricks::cuda {

constexpr int kFlatUnroll = 4;

// The pieces of this thread. Those beyond the end of the tensor are empty.
template <int n>
__device__ __forceinline__ void flat_pieces(int64_t count, Piece<n> (&pieces)[kFlatUnroll]) {
  const int64_t first = (int64_t(blockIdx.x) * kFlatUnroll * kThreads + threadIdx.x) * n;
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    const int64_t index = first + int64_t(u) * kThreads * n, left = count - index;
    pieces[u] = {index, 0, left <= 0 ? 0 : left < n ? int(left) : n};
  }
}

inline int64_t flat_blocks(int64_t count, int n) {
  return std::max<int64_t>(1, ceil_div(count, int64_t(n) * kFlatUnroll * kThreads));
}

// Calls f(Type<T>, n) for the dtype, where n is the number of elements that a thread moves at once: a whole pack if all
// tensors are aligned for that, else one.
template <class F>
void with_flat_pack(c10::ScalarType dtype, bool aligned, const F& f) {
  visit_dtype(dtype, [&](auto type) {
    constexpr int n = kPack<typename decltype(type)::type>;
    if (aligned)
      f(type, std::integral_constant<int, n>());
    else
      f(type, std::integral_constant<int, 1>());
  });
}

}  // namespace fusedtricks::cuda

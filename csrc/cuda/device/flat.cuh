// Elementwise kernels over n neighbouring elements: a block takes a tile of packs, a thread some packs of it.
#pragma once

#include <algorithm>

#include "cuda/device/walk.cuh"

namespace fusedtricks::cuda {

constexpr int kFlatUnroll = 4;

// The pieces of this thread; those beyond the end are empty.
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

}  // namespace fusedtricks::cuda

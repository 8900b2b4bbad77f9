// Partial results of batch_norm_act: where the blocks leave them, for other blocks to merge.
#pragma once

#include "cuda/device/reduce.cuh"

namespace fusedtricks::cuda {

// What deviations are taken from and multiplied by, so that neither their sums cancel nor their squares overflow.
template <class V>
struct Pivot {
  V shift, scale;
};

// The partial results of every channel of the tensor, and its pivot.
template <class V>
struct Workspace {
  Sums<V>* partials;
  Pivot<V>* pivots;
  int64_t channels;

  static int64_t bytes(int64_t partials, int64_t channels) {
    return channels * (partials * int64_t(sizeof(Sums<V>)) + int64_t(sizeof(Pivot<V>)));
  }
  Workspace(void* memory, int64_t partials_, int64_t channels_)
      : partials(static_cast<Sums<V>*>(memory)),
        pivots(reinterpret_cast<Pivot<V>*>(partials + partials_ * channels_)),
        channels(channels_) {}

  FT_INLINE Sums<V>& partial(int64_t number, int64_t channel) const { return partials[number * channels + channel]; }
  // Read past the first cache: other blocks of the same kernel may have written it.
  __device__ __forceinline__ Sums<V> read(int64_t number, int64_t channel) const {
    using Pair = std::conditional_t<std::is_same_v<V, float>, float2, double2>;
    const Pair pair = __ldcg(reinterpret_cast<const Pair*>(&partial(number, channel)));
    return {pair.x, pair.y};
  }
  __device__ __forceinline__ Pivot<V> read_pivot(int64_t channel) const {
    return {__ldcg(&pivots[channel].shift), __ldcg(&pivots[channel].scale)};
  }
};

// Writes what a thread has of its channels in a chunk. The channels of a fold lie side by side, as its rows do.
template <class V, class Walk>
__device__ __forceinline__ void leave_partials(const Sums<V> (&sums)[Walk::channels], const typename Walk::Plan& plan,
                                               const Walk& walk, int64_t chunk, const Workspace<V>& out) {
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) {
    if (walk.channel + c < plan.channels) out.partial(chunk * plan.fold, walk.channel + c) = sums[c];
  }
}

template <class V, class Walk>
__device__ void leave_sums(Sums<V> (&sums)[Walk::channels], const typename Walk::Plan& plan, const Walk& walk,
                           int64_t chunk, const Workspace<V>& out, void* memory) {
  merge_threads(sums, plan.lanes, memory);
  if (int(threadIdx.x) < plan.lanes) leave_partials(sums, plan, walk, chunk, out);
}

}  // namespace fusedtricks::cuda

// Partial results of batch_norm_act: where the blocks leave them, for other blocks to merge.
#pragma once

#include "reduce.cuh"

namespace fusedtricks::cuda {

// What deviations are taken from and multiplied by, so that neither their sums cancel nor their squares overflow.
template <class V>
struct Pivot {
  V shift, scale;
};

// Partial results, one a chunk and channel, and the pivots, one a channel.
template <class V>
struct Workspace {
  Sums<V>* partials;
  Pivot<V>* pivots;
  int64_t channels;

  static int64_t bytes(int64_t chunks, int64_t channels) {
    return channels * (chunks * int64_t(sizeof(Sums<V>)) + int64_t(sizeof(Pivot<V>)));
  }
  Workspace(void* memory, int64_t chunks, int64_t channels_)
      : partials(static_cast<Sums<V>*>(memory)),
        pivots(reinterpret_cast<Pivot<V>*>(partials + chunks * channels_)),
        channels(channels_) {}

  FT_INLINE Sums<V>& partial(int64_t chunk, int64_t channel) const { return partials[chunk * channels + channel]; }
  // Read past the first cache: other blocks of the same kernel may have written it.
  __device__ __forceinline__ Sums<V> read(int64_t chunk, int64_t channel) const {
    using Pair = std::conditional_t<std::is_same_v<V, float>, float2, double2>;
    const Pair pair = __ldcg(reinterpret_cast<const Pair*>(&partial(chunk, channel)));
    return {pair.x, pair.y};
  }
  __device__ __forceinline__ Pivot<V> read_pivot(int64_t channel) const {
    return {__ldcg(&pivots[channel].shift), __ldcg(&pivots[channel].scale)};
  }
};

template <class V, class Walk>
__device__ void leave_sums(Sums<V> (&sums)[Walk::channels], const typename Walk::Plan& plan, const Walk& walk,
                           int64_t chunk, const Workspace<V>& out, void* memory) {
  merge_threads<Walk::threads>(sums, plan.lanes, memory);
  if (int(threadIdx.x) >= plan.lanes || !walk.has_channel()) return;
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) out.partial(chunk, walk.channel + c) = sums[c];
}

}  // namespace fusedtricks::cuda

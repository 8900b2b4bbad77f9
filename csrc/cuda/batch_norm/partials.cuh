// The partial results of batch_norm_act: where blocks leave what they have computed of a channel, for other blocks to
// merge.
#pragma once

#include "cuda/device/reduce.cuh"

namespace fusedtricks::cuda {

// Blocks that a multiprocessor runs at the same time. All kernels divide a tensor into the same parts, so that the
// second kernel of a pair can begin with what the first one read last.
constexpr int kBlocks = 2;

// The steps that a block should have to do at least. With fewer it would hardly be worth starting.
constexpr int kStepsOfBlock = 16;

// The statistics are made of d = (x - shift) * scale instead of x: with a shift of the size of the mean their sums do
// not cancel, and with a small enough scale their squares do not overflow.
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
  // These two bypass the first-level cache, because other blocks of the same kernel may have written the values.
  __device__ __forceinline__ Sums<V> read(int64_t number, int64_t channel) const {
    using Pair = std::conditional_t<std::is_same_v<V, float>, float2, double2>;
    const Pair pair = __ldcg(reinterpret_cast<const Pair*>(&partial(number, channel)));
    return {pair.x, pair.y};
  }
  __device__ __forceinline__ Pivot<V> read_pivot(int64_t channel) const {
    return {__ldcg(&pivots[channel].shift), __ldcg(&pivots[channel].scale)};
  }
};

// Writes a thread's results for its channels in a chunk. A chunk fills plan.fold partial results of a channel of the
// tensor at once, because the channels of a fold lie next to each other, as its rows do.
template <class V, class Walk>
__device__ __forceinline__ void leave_partials(const Sums<V> (&sums)[Walk::channels], const typename Walk::Plan& plan,
                                               const Walk& walk, int64_t chunk, const Workspace<V>& out) {
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) {
    if (walk.channel + c < plan.channels) out.partial(chunk * plan.fold, walk.channel + c) = sums[c];
  }
}

// Merges the sums of a block's threads and writes them. Every thread of the block must call it.
template <class V, class Walk>
__device__ void leave_sums(Sums<V> (&sums)[Walk::channels], const typename Walk::Plan& plan, const Walk& walk,
                           int64_t chunk, const Workspace<V>& out, void* memory) {
  merge_threads(sums, plan.lanes, memory);
  if (int(threadIdx.x) < plan.lanes) leave_partials(sums, plan, walk, chunk, out);
}

}  // namespace fusedtricks::cuda

// Statistics of the packs that a thread reads: moments of their deviations from a pivot, one tile of packs at a time.
#pragma once

#include "core/batch_norm_math.h"
#include "cuda/batch_norm/partials.cuh"

namespace fusedtricks::cuda {

// The inverse of the largest power of two that is not above |x|. But 1 as long as |x| is not so large that sums of its
// square might overflow.
template <class V>
__device__ __forceinline__ V scale_for(V x) {
  using Int = typename ExpTraits<V>::Int;
  constexpr int bits = ExpTraits<V>::mantissa_bits, bias = ExpTraits<V>::bias;
  const Int exponent = (bit_cast<Int>(x) >> bits & (2 * bias + 1)) - bias;
  const Int finite = exponent < bias ? exponent : Int(bias - 1);
  return exponent > bias / 4 && exponent <= bias ? bit_cast<V>((bias - finite) << Int(bits)) : V(1);
}

// The pivot of a channel, from its first values: their first as the shift, and a scale for the largest of them.
template <class T>
__device__ __forceinline__ Pivot<OpMath<T>> pivot_of(const T* x, const Layout& layout, int64_t channel) {
  using V = OpMath<T>;
  constexpr int samples = 16;
  const bool rows = layout.channels_last;
  const int64_t step = rows ? layout.channels : 1, there = rows ? layout.per_channel() : layout.positions;
  const T* first = x + channel * (rows ? 1 : layout.positions);
  V most = 0;
#pragma unroll
  for (int i = 0; i < samples; ++i) {
    const V value = i < there ? load(first[i * step]) : V(0), size = value < V(0) ? -value : value;
    most = size > most ? size : most;
  }
  return {load(*first), scale_for(most)};
}

// Bytes of shared memory that the pivots of a block's channels take.
template <class V, class Plan>
constexpr size_t pivot_bytes(const Plan& plan) {
  return sizeof(Pivot<V>) * plan.block_channels();
}

// Finds the pivots of a thread's channels; channels of a fold have those of the tensor's channels that they stand for.
// The blocks of the first chunk also write them to the workspace. Every thread of the block must call it.
template <class T, class Walk>
__device__ void find_pivots(const BatchNormForward& a, const typename Walk::Plan& plan, const Walk& walk, int64_t chunk,
                            const Workspace<OpMath<T>>& out, void* memory, Pivot<OpMath<T>> (&pivots)[Walk::channels]) {
  auto* shared = static_cast<Pivot<OpMath<T>>*>(memory);
  const int64_t channel = walk.block_channel + threadIdx.x, C = a.layout.channels;
  if (int(threadIdx.x) < plan.block_channels() && channel < plan.channels) {
    const auto pivot = pivot_of(static_cast<const T*>(a.x), a.layout, unfolded(channel, C));
    shared[threadIdx.x] = pivot;
    if (chunk == 0 && channel < C) out.pivots[channel] = pivot;
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) pivots[c] = shared[int(walk.channel - walk.block_channel) + c];
}

// The moments of a thread's channels. All of them have the same number of elements.
template <class V, class Walk>
struct OwnMoments {
  V count = 0, mean[Walk::channels] = {}, m2[Walk::channels] = {};

  __device__ __forceinline__ Moments<V> of(int c) const { return {count, mean[c], m2[c]}; }
};

// Adds a tile of pieces: first its mean, then its squared deviations from that, then both are merged into the moments.
// masked: some of the pieces are not whole.
template <bool masked, class T, class Walk, int unroll>
__device__ __forceinline__ void add_tile_moments(const Piece<Walk::pack> (&pieces)[unroll],
                                                 const Pack<T, Walk::pack> (&packs)[unroll],
                                                 const Pivot<OpMath<T>> (&pivots)[Walk::channels],
                                                 OwnMoments<OpMath<T>, Walk>& moments) {
  using V = OpMath<T>;
  int elements = masked ? 0 : unroll * Walk::pack / Walk::channels;
#pragma unroll
  for (int u = 0; masked && u < unroll; ++u) elements += Walk::elements(pieces[u]);
  if (masked && elements == 0) return;
  const V inverse = V(1) / V(elements), before = moments.count;
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) {
    const V scale = pivots[c].scale, offset = -pivots[c].shift * scale;
    const auto for_elements = [&](const auto& f) {
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        Walk::of_channel(c, [&](int e) {
          if (!masked || pieces[u].has(e)) f(load(packs[u].value[e]) * scale + offset);
        });
      }
    };
    V mean = 0, m2 = 0;
    for_elements([&](V d) { mean += d; });
    mean *= inverse;
    for_elements([&](V d) { m2 += (d - mean) * (d - mean); });
    Moments<V> merged{before, moments.mean[c], moments.m2[c]};
    merged.merge({V(elements), mean, m2});
    moments.mean[c] = merged.mean;
    moments.m2[c] = merged.m2;
    moments.count = merged.count;
  }
}

template <class T, class Walk, int unroll>
__device__ __forceinline__ void add_moments(const Piece<Walk::pack> (&pieces)[unroll],
                                            const Pack<T, Walk::pack> (&packs)[unroll],
                                            const Pivot<OpMath<T>> (&pivots)[Walk::channels],
                                            OwnMoments<OpMath<T>, Walk>& moments) {
  bool whole = true;
#pragma unroll
  for (int u = 0; u < unroll; ++u) whole = whole && pieces[u].whole();
  if (whole)
    add_tile_moments<false, T, Walk>(pieces, packs, pivots, moments);
  else
    add_tile_moments<true, T, Walk>(pieces, packs, pivots, moments);
}

// Merges the moments of a block's threads, and those of a cut pack, and writes them as the partial results of its part.
// memory: the one that find_pivots was given, with room for the merge behind the pivots. Every thread of the block must
// call it.
template <class T, class Walk, class V = OpMath<T>>
__device__ void leave_moments(const T* x, const OwnMoments<V, Walk>& own, const Pivot<V> (&pivots)[Walk::channels],
                              const typename Walk::Plan& plan, const Walk& walk, int64_t chunk, const Workspace<V>& out,
                              void* memory) {
  Moments<V> moments[Walk::channels];
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) moments[c] = own.of(c);
  merge_threads(moments, plan.lanes, static_cast<char*>(memory) + pivot_bytes<V>(plan));
  if (int(threadIdx.x) >= plan.lanes) return;
  const auto cut = plan.cut(chunk, walk.channel);
  Sums<V> sums[Walk::channels];
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) {
    // Scaled before it is subtracted, as all other elements: the difference of two huge values would overflow.
    const V scale = pivots[c].scale, offset = -pivots[c].shift * scale;
    if (cut.has(c)) moments[c].merge({1, load(x[cut.index + c]) * scale + offset, 0});
    sums[c] = {moments[c].mean, moments[c].m2};
  }
  leave_partials(sums, plan, walk, chunk, out);
}

}  // namespace fusedtricks::cuda

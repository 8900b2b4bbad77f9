// What the kernels of batch_norm_act are made of: statistics and sums of the packs a thread reads, what becomes of a
// pack, and what becomes of a block's partial results.
#pragma once

#include "../batch_norm.h"
#include "activation.cuh"
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

// The inverse of the largest power of two that is not above |x|; 1 unless |x| is so large that its square, summed,
// might overflow.
template <class V>
__device__ __forceinline__ V scale_for(V x) {
  using Int = typename ExpTraits<V>::Int;
  constexpr int bits = ExpTraits<V>::mantissa_bits, bias = ExpTraits<V>::bias;
  const Int exponent = (bit_cast<Int>(x) >> bits & (2 * bias + 1)) - bias;
  const Int finite = exponent < bias ? exponent : Int(bias - 1);
  return exponent > bias / 4 && exponent <= bias ? bit_cast<V>((bias - finite) << Int(bits)) : V(1);
}

// From the first packs of a thread's channels: their first value, and a scale by the largest.
template <class T, class Walk>
__device__ void find_pivots(const T* x, const typename Walk::Plan& plan, int64_t channel,
                            Pivot<Compute<T>> (&pivots)[Walk::channels]) {
  using V = Compute<T>;
  constexpr int samples = 4;
  V most[Walk::channels] = {};
  bool found = false;
#pragma unroll
  for (int i = 0; i < samples; ++i) {
    const auto piece = Walk::sample(plan, channel, i);
    const auto pack = load_piece<Read::kAgain>(x, piece, plan.numel());
#pragma unroll
    for (int c = 0; c < Walk::channels; ++c) {
      bool first = !found;
      Walk::of_channel(c, [&](int e) {
        if (!piece.has(e)) return;
        const V value = load(pack.value[e]), size = value < V(0) ? -value : value;
        if (first) pivots[c].shift = value;
        most[c] = size > most[c] ? size : most[c];
        first = false;
      });
    }
    found = found || !piece.empty();
  }
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) pivots[c].scale = scale_for(most[c]);
}

// Moments of a thread's channels, which all have as many elements.
template <class V, class Walk>
struct OwnMoments {
  V count = 0, mean[Walk::channels] = {}, m2[Walk::channels] = {};
};

// Adds the pieces' elements, a tile at a time: its mean, then its squared deviations. masked: some are not whole.
template <bool masked, class T, class Walk, int unroll>
__device__ __forceinline__ void add_tile_moments(const Piece<Walk::pack> (&pieces)[unroll],
                                                 const Pack<T, Walk::pack> (&packs)[unroll],
                                                 const Pivot<Compute<T>> (&pivots)[Walk::channels],
                                                 OwnMoments<Compute<T>, Walk>& moments) {
  using V = Compute<T>;
  int elements = masked ? 0 : unroll * Walk::pack / Walk::channels;
#pragma unroll
  for (int u = 0; masked && u < unroll; ++u) elements += Walk::elements(pieces[u]);
  if (masked && elements == 0) return;
  const V inverse = V(1) / V(elements), total = moments.count + V(elements), share = V(elements) / total;
  const V weight = moments.count * share;
  moments.count = total;
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
    const V delta = mean - moments.mean[c];
    moments.m2[c] += m2 + (delta * weight) * delta;
    // Where the difference is not finite, an infinite mean stays infinite.
    moments.mean[c] += delta * V(0) == V(0) ? delta * share : mean;
  }
}

template <class T, class Walk, int unroll>
__device__ __forceinline__ void add_moments(const Piece<Walk::pack> (&pieces)[unroll],
                                            const Pack<T, Walk::pack> (&packs)[unroll],
                                            const Pivot<Compute<T>> (&pivots)[Walk::channels],
                                            OwnMoments<Compute<T>, Walk>& moments) {
  bool whole = true;
#pragma unroll
  for (int u = 0; u < unroll; ++u) whole = whole && pieces[u].whole();
  if (whole)
    add_tile_moments<false, T, Walk>(pieces, packs, pivots, moments);
  else
    add_tile_moments<true, T, Walk>(pieces, packs, pivots, moments);
}

// Merges the moments of a block's threads and leaves them as the partial results of its part.
template <class V, class Walk>
__device__ void leave_moments(const OwnMoments<V, Walk>& own, const Pivot<V> (&pivots)[Walk::channels],
                              const typename Walk::Plan& plan, const Walk& walk, int64_t chunk, const Workspace<V>& out,
                              void* memory) {
  Moments<V> moments[Walk::channels];
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) moments[c] = {own.count, own.mean[c], own.m2[c]};
  merge_threads<Walk::threads>(moments, plan.lanes, memory);
  if (int(threadIdx.x) >= plan.lanes || !walk.has_channel()) return;
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) {
    out.partial(chunk, walk.channel + c) = {moments[c].mean, moments[c].m2};
    if (chunk == 0) out.pivots[walk.channel + c] = pivots[c];
  }
}

template <class V, class Walk>
__device__ void leave_sums(Sums<V> (&sums)[Walk::channels], const typename Walk::Plan& plan, const Walk& walk,
                           int64_t chunk, const Workspace<V>& out, void* memory) {
  merge_threads<Walk::threads>(sums, plan.lanes, memory);
  if (int(threadIdx.x) >= plan.lanes || !walk.has_channel()) return;
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) out.partial(chunk, walk.channel + c) = sums[c];
}

// Coefficients of a block's channels in shared memory, an array each.
template <class V>
struct Table {
  V* values;
  int width;  // channels of the block

  __device__ __forceinline__ V& at(Coefficient which, int number) const { return values[which * width + number]; }
  __device__ __forceinline__ void set(int number, const ForwardCoefficients<V>& c) const {
    at(kShift, number) = c.shift;
    at(kScale, number) = c.scale;
    at(kOffset, number) = c.offset;
    at(kRstd, number) = c.rstd;
  }
};

// Those of a thread's own channels: the first `kinds` of Coefficient.
template <class V, class Walk, int kinds>
struct Own {
  V value[kinds][Walk::channels];

  __device__ __forceinline__ Own(const Table<V>& table, const Walk& walk) {
#pragma unroll
    for (int k = 0; k < kinds; ++k) {
#pragma unroll
      for (int c = 0; c < Walk::channels; ++c) {
        value[k][c] = table.at(Coefficient(k), int(walk.channel - walk.block_channel) + c);
      }
    }
  }
  __device__ __forceinline__ V get(Coefficient which, int element) const {
    return value[which][Walk::channel_of(element)];
  }
};

constexpr int kForwardKinds = kOffset + 1, kSumKinds = kRstd + 1;

// Sets the table of a block's channels from their statistics: in training those of all chunks, merged, else the running
// ones. records: this block also writes them. Every thread has to call it; the table is there when it returns.
template <class V, class Walk>
__device__ void finish_statistics(const BatchNormForward& a, const typename Walk::Plan& plan, const Walk& walk,
                                  const Workspace<V>& in, bool records, const Table<V>& table, void* memory) {
  const int64_t channel = walk.block_channel + threadIdx.x;
  const Sums<double>* totals = nullptr;
  if (a.training) {
    totals = total_chunks<Walk::threads>(plan, walk.block_channel, memory, [&](int64_t chunk, int64_t c) {
      const Sums<V> moments = in.read(chunk, c);
      const double count = double(plan.count(chunk, c)), mean = moments.first;
      return Sums<double>{count * mean, double(moments.second) + count * mean * mean};
    });
  }
  if (int(threadIdx.x) < plan.block_channels() && channel < plan.channels) {
    ChannelStatistics s;
    if (a.training) {
      const Pivot<V> pivot = in.read_pivot(channel);
      const double count = double(a.layout.per_channel()), scale = pivot.scale;
      const double mean = totals[threadIdx.x].first / count;
      s = {pivot.shift + mean / scale, (totals[threadIdx.x].second / count - mean * mean) / (scale * scale)};
    } else {
      s = a.running_statistics(channel);
    }
    table.set(threadIdx.x,
              ForwardCoefficients<V>(s.mean, a.rstd_of(s), a.weight.get_or(channel, 1), a.bias.get_or(channel, 0)));
    if (records) a.record(channel, s);
  }
  __syncthreads();
}

// Sets the table of a block's channels from the statistics that the forward saved.
template <class V, class Walk>
__device__ void set_forward(const BatchNormBackward& a, const typename Walk::Plan& plan, const Walk& walk,
                            const Table<V>& table) {
  const int64_t channel = walk.block_channel + threadIdx.x;
  if (int(threadIdx.x) < plan.block_channels() && channel < plan.channels) {
    table.set(threadIdx.x, ForwardCoefficients<V>(a.mean[channel], a.rstd[channel], a.weight.get_or(channel, 1),
                                                  a.bias.get_or(channel, 0)));
  }
  __syncthreads();
}

// Sets slope and constant from the sums of all chunks, zero where none are needed. records: this block also writes the
// parameters' gradients. Every thread has to call it; the table is there when it returns.
template <class V, class Walk>
__device__ void finish_sums(const BatchNormBackward& a, const typename Walk::Plan& plan, const Walk& walk,
                            const Workspace<V>& in, bool records, const Table<V>& table, void* memory) {
  const int64_t channel = walk.block_channel + threadIdx.x;
  const Sums<double>* totals = nullptr;
  if (a.needs_sums()) {
    totals = total_chunks<Walk::threads>(plan, walk.block_channel, memory, [&](int64_t chunk, int64_t c) {
      const Sums<V> sums = in.read(chunk, c);
      return Sums<double>{sums.first, sums.second};
    });
  }
  if (int(threadIdx.x) < plan.block_channels() && channel < plan.channels) {
    const Sums<double> total = totals ? totals[threadIdx.x] : Sums<double>{};
    const BackwardCoefficients<V> c(total.first, total.second, a.mean[channel], table.at(kShift, threadIdx.x),
                                    a.rstd[channel], a.weight.get_or(channel, 1), double(a.layout.per_channel()),
                                    a.training);
    table.at(kSlope, threadIdx.x) = c.slope;
    table.at(kConstant, threadIdx.x) = c.constant;
    if (records && a.dweight) a.dweight.set(channel, c.dweight);
    if (records && a.dbias) a.dbias.set(channel, total.first);
  }
  __syncthreads();
}

// act((x - shift) * scale + offset [+ residual]).
template <bool has_residual, class T, class Walk, class Act>
__device__ __forceinline__ Pack<T, Walk::pack> normalized(const Pack<T, Walk::pack>& x,
                                                          const Pack<T, Walk::pack>& residual,
                                                          const Own<Compute<T>, Walk, kForwardKinds>& own,
                                                          const Act& act) {
  Compute<T> z[Walk::pack];
  unpack(x, z);
#pragma unroll
  for (int e = 0; e < Walk::pack; ++e) {
    z[e] = (z[e] - own.get(kShift, e)) * own.get(kScale, e) + own.get(kOffset, e);
    if (has_residual) z[e] += load(residual.value[e]);
  }
  activate(act, z);
  return rounded_pack<T>(z);
}

// Where the activation's derivative is taken.
enum class Derivative { kAtInput, kOfOutput, kAtResidual };

// Adds dz and dz * (x - shift) * rstd of a piece to the sums, dz being dy times the derivative; `other` is the output
// or the residual. Gives dz, which after a residual is summed as it is rounded there.
template <Derivative derivative, class T, class Walk, class Act>
__device__ __forceinline__ Pack<T, Walk::pack> add_gradients(const Piece<Walk::pack>& piece,
                                                             const Pack<T, Walk::pack>& x,
                                                             const Pack<T, Walk::pack>& dy,
                                                             const Pack<T, Walk::pack>& other,
                                                             const Own<Compute<T>, Walk, kSumKinds>& own,
                                                             const Act& act, Sums<Compute<T>> (&sums)[Walk::channels]) {
  constexpr int n = Walk::pack;
  Compute<T> d[n], z[n], dz[n];
  unpack(x, d);
  unpack(dy, dz);
#pragma unroll
  for (int e = 0; e < n; ++e) {
    d[e] -= own.get(kShift, e);
    z[e] = derivative == Derivative::kOfOutput ? load(other.value[e]) : d[e] * own.get(kScale, e) + own.get(kOffset, e);
    if (derivative == Derivative::kAtResidual) z[e] += load(other.value[e]);
  }
  if constexpr (derivative == Derivative::kOfOutput)
    multiply_by_derivative_of_result(act, dz, z);
  else
    multiply_by_derivative(act, dz, z);
  Pack<T, n> result;
  if constexpr (derivative != Derivative::kAtInput) {
    result = rounded_pack<T>(dz);
    unpack(result, dz);
  }
#pragma unroll
  for (int e = 0; e < n; ++e) {
    if (!piece.has(e)) continue;
    sums[Walk::channel_of(e)].first += dz[e];
    sums[Walk::channel_of(e)].second += dz[e] * (d[e] * own.get(kRstd, e));
  }
  return result;
}

// dx = dz * scale + (x - shift) * rstd * slope + constant, dz being dy times the derivative at z.
template <class T, class Walk, class Act>
__device__ __forceinline__ Pack<T, Walk::pack> differentiated(const Pack<T, Walk::pack>& x,
                                                              const Pack<T, Walk::pack>& dy,
                                                              const Own<Compute<T>, Walk, kCoefficients>& own,
                                                              const Act& act) {
  constexpr int n = Walk::pack;
  Compute<T> d[n], z[n], dz[n];
  unpack(x, d);
  unpack(dy, dz);
#pragma unroll
  for (int e = 0; e < n; ++e) {
    d[e] -= own.get(kShift, e);
    z[e] = d[e] * own.get(kScale, e) + own.get(kOffset, e);
  }
  multiply_by_derivative(act, dz, z);
#pragma unroll
  for (int e = 0; e < n; ++e) {
    dz[e] = dz[e] * own.get(kScale, e) + (d[e] * own.get(kRstd, e) * own.get(kSlope, e) + own.get(kConstant, e));
  }
  return rounded_pack<T>(dz);
}

}  // namespace fusedtricks::cuda

// The kernels of batch_norm_act: statistics, then normalize; add_gradients, then differentiate. The first of each pair
// leaves partial results of every chunk, the second merges those of its channels before it begins: no counter, no
// atomic operation, nothing to set to zero, and a channel's sums could come from several devices in between.
#pragma once

#include "../activations.h"
#include "../batch_norm.h"
#include "activation.cuh"
#include "reduce.cuh"

namespace fusedtricks::cuda {

// Blocks that a multiprocessor holds.
constexpr int kSumsBlocks = 2, kNormalizeBlocks = 3;

// How many packs of each of `tensors` tensors a thread asks for at once: as many as the registers leave room for beside
// the sums or coefficients of its channels. 32 to 64 KB are then on their way to each multiprocessor; the memory of an
// H200 wants 48.
template <class Walk, class Act>
constexpr int packs_at_once(int tensors) {
  const int packs = Walk::channels <= 4 ? 8 : Act::is_fixed ? 6 : 4;
  return (packs + tensors - 1) / tensors;
}

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

  static int64_t bytes(int64_t chunks, int64_t channels) {
    return channels * (chunks * int64_t(sizeof(Sums<V>)) + int64_t(sizeof(Pivot<V>)));
  }
  Workspace(void* memory, int64_t chunks, int64_t channels)
      : partials(static_cast<Sums<V>*>(memory)), pivots(reinterpret_cast<Pivot<V>*>(partials + chunks * channels)) {}
};

// The largest power of two that is not above |x|, as the inverse; 1 unless |x| is so large that its square, summed,
// might overflow.
template <class V>
__device__ __forceinline__ V scale_for(V x) {
  using Int = typename ExpTraits<V>::Int;
  constexpr int bits = ExpTraits<V>::mantissa_bits, bias = ExpTraits<V>::bias;
  const Int exponent = (bit_cast<Int>(x) >> bits & (2 * bias + 1)) - bias;
  return exponent > bias / 4 && exponent < bias ? bit_cast<V>((bias - exponent) << Int(bits)) : V(1);
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

// Adds the pieces' elements of each channel to its moments, a tile at a time: its mean, then its squared deviations.
// masked: some of the pieces are not whole.
template <bool masked, class T, class Walk, int unroll>
__device__ __forceinline__ void add_tile(const Piece<Walk::pack> (&pieces)[unroll],
                                         const Pack<T, Walk::pack> (&packs)[unroll],
                                         const Pivot<Compute<T>> (&pivots)[Walk::channels],
                                         Moments<Compute<T>> (&moments)[Walk::channels]) {
  using V = Compute<T>;
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
    int count = 0;
    Moments<V> tile;
    for_elements([&](V d) { tile.mean += d, ++count; });
    if (count) tile.mean /= V(count);
    for_elements([&](V d) { tile.m2 += (d - tile.mean) * (d - tile.mean); });
    tile.count = V(count);
    moments[c].merge(tile);
  }
}

// Moments of the scaled deviations from the pivot, of every channel and chunk.
template <class T, class Walk>
__global__ void __launch_bounds__(kThreads, kSumsBlocks)
    statistics(BatchNormForward a, typename Walk::Plan plan, Workspace<Compute<T>> out) {
  using V = Compute<T>;
  constexpr int unroll = packs_at_once<Walk, AnyActivation<V>>(1);
  const T* x = static_cast<const T*>(a.x);
  Walk walk(plan, /*reversed=*/false);
  const int64_t channel = walk.channel;
  Pivot<V> pivots[Walk::channels] = {};
  Moments<V> moments[Walk::channels];
  find_pivots<T, Walk>(x, plan, channel, pivots);
  while (walk.more()) {
    Piece<Walk::pack> pieces[unroll];
    Pack<T, Walk::pack> packs[unroll];
    walk.next(pieces);
    bool whole = true;
#pragma unroll
    for (int u = 0; u < unroll; ++u) whole = whole && pieces[u].whole();
#pragma unroll
    for (int u = 0; u < unroll; ++u) packs[u] = load_piece<Read::kAgain>(x, pieces[u], plan.numel());
    if (whole)
      add_tile<false, T, Walk>(pieces, packs, pivots, moments);
    else
      add_tile<true, T, Walk>(pieces, packs, pivots, moments);
  }
  merge_threads(moments, plan.lanes);
  if (blockIdx.x == 0 && threadIdx.x == 0) a.count_batch();
  if (threadIdx.x >= plan.lanes || !walk.has_channel()) return;
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) {
    out.partials[walk.chunk * plan.channels + channel + c] = {moments[c].mean, moments[c].m2};
    if (walk.chunk == 0) out.pivots[channel + c] = pivots[c];
  }
}

// The statistics of a channel from those of all chunks, as total_chunks adds them up.
template <class V>
__device__ ChannelStatistics merged_statistics(Sums<double> total, Pivot<V> pivot, double count) {
  const double mean = total.first / count, m2 = total.second - total.first * mean;
  return {double(pivot.shift) + mean / pivot.scale, m2 / (double(pivot.scale) * double(pivot.scale)) / count};
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
  // This thread's own.
  template <class Walk>
  __device__ __forceinline__ void get(Coefficient which, const Walk& walk, V (&out)[Walk::channels]) const {
#pragma unroll
    for (int c = 0; c < Walk::channels; ++c) out[c] = at(which, int(walk.channel - walk.block_channel) + c);
  }
};

// y = act((x - shift) * scale + offset [+ residual]). In training, merges the statistics of all chunks first.
template <class T, class Walk, class Act, bool has_residual>
__global__ void __launch_bounds__(kThreads, kNormalizeBlocks)
    normalize(BatchNormForward a, typename Walk::Plan plan, typename Walk::Plan statistics_plan,
              Workspace<Compute<T>> partial, Act act) {
  using V = Compute<T>;
  constexpr int n = Walk::pack, unroll = has_residual ? 2 : 4;
  Walk walk(plan, /*reversed=*/true);
  const Table<V> table{dynamic_shared<V>(), plan.block_channels()};
  const int64_t channel = walk.block_channel + threadIdx.x;
  const bool finishes = threadIdx.x < plan.block_channels() && channel < plan.channels;
  const Sums<double>* totals = nullptr;
  if (a.training) {
    totals = total_chunks(statistics_plan, walk.block_channel, [&](int64_t chunk, int64_t c) {
      const Sums<V> moments = partial.partials[chunk * plan.channels + c];
      const double count = double(statistics_plan.count(chunk, c)), mean = moments.first;
      return Sums<double>{count * mean, double(moments.second) + count * mean * mean};
    });
  }
  if (finishes) {
    const double count = double(a.layout.per_channel());
    const ChannelStatistics s = a.training ? merged_statistics(totals[threadIdx.x], partial.pivots[channel], count)
                                           : a.running_statistics(channel);
    table.set(threadIdx.x,
              ForwardCoefficients<V>(s.mean, a.rstd_of(s), a.weight.get_or(channel, 1), a.bias.get_or(channel, 0)));
    if (walk.chunk == 0) a.record(channel, s);
  }
  __syncthreads();
  V shift[Walk::channels], scale[Walk::channels], offset[Walk::channels];
  table.get(kShift, walk, shift);
  table.get(kScale, walk, scale);
  table.get(kOffset, walk, offset);

  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  while (walk.more()) {
    Piece<n> pieces[unroll];
    Pack<T, n> packs[unroll], residuals[unroll];
    walk.next(pieces);
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      packs[u] = load_piece<Read::kOnce>(x, pieces[u], plan.numel());
      if (has_residual) residuals[u] = load_piece<Read::kOnce>(residual, pieces[u], plan.numel());
    }
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      V z[n];
      unpack(packs[u], z);
#pragma unroll
      for (int e = 0; e < n; ++e) {
        const int c = Walk::channel_of(e);
        z[e] = (z[e] - shift[c]) * scale[c] + offset[c];
        if (has_residual) z[e] += load(residuals[u].value[e]);
      }
      activate(act, z);
      store_piece(y, pieces[u], rounded_pack<T>(z));
    }
  }
}

// Where the activation's derivative is taken.
enum class Derivative { kAtInput, kOfOutput, kAtResidual };

// Coefficients of this block's channels from the statistics that the forward saved.
template <class V>
__device__ void set_forward(const BatchNormBackward& a, const Table<V>& table, int64_t channel) {
  table.set(threadIdx.x, ForwardCoefficients<V>(a.mean[channel], a.rstd[channel], a.weight.get_or(channel, 1),
                                                a.bias.get_or(channel, 0)));
}

// The sums over every chunk of dz and dz * (x - shift) * rstd. After a residual dz is written, and summed as rounded.
template <class T, class Walk, class Act, Derivative derivative>
__global__ void __launch_bounds__(kThreads, kSumsBlocks)
    add_gradients(BatchNormBackward a, typename Walk::Plan plan, Workspace<Compute<T>> out, Act act) {
  using V = Compute<T>;
  constexpr int n = Walk::pack, unroll = packs_at_once<Walk, Act>(derivative == Derivative::kAtInput    ? 2
                                                                  : derivative == Derivative::kOfOutput ? 3
                                                                                                        : 4);
  Walk walk(plan, /*reversed=*/false);
  const Table<V> table{dynamic_shared<V>(), plan.block_channels()};
  const int64_t channel = walk.block_channel + threadIdx.x;
  if (threadIdx.x < plan.block_channels() && channel < plan.channels) set_forward(a, table, channel);
  __syncthreads();
  V shift[Walk::channels], scale[Walk::channels], offset[Walk::channels], rstd[Walk::channels];
  table.get(kShift, walk, shift);
  table.get(kScale, walk, scale);
  table.get(kOffset, walk, offset);
  table.get(kRstd, walk, rstd);
  __syncthreads();  // merge_threads takes the same memory

  const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy);
  const T* other = static_cast<const T*>(derivative == Derivative::kOfOutput ? a.output : a.residual);
  Sums<V> sums[Walk::channels];
  while (walk.more()) {
    Piece<n> pieces[unroll];
    Pack<T, n> packs[unroll], gradients[unroll], others[unroll];
    walk.next(pieces);
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      constexpr bool writes = derivative != Derivative::kAtInput;
      packs[u] = load_piece<Read::kAgain>(x, pieces[u], plan.numel());
      gradients[u] = load_piece<writes ? Read::kOnce : Read::kAgain>(dy, pieces[u], plan.numel());
      if (writes) others[u] = load_piece<Read::kOnce>(other, pieces[u], plan.numel());
    }
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      V d[n], z[n], dz[n];
      unpack(packs[u], d);
      unpack(gradients[u], dz);
#pragma unroll
      for (int e = 0; e < n; ++e) {
        const int c = Walk::channel_of(e);
        d[e] -= shift[c];
        z[e] = derivative == Derivative::kOfOutput ? load(others[u].value[e]) : d[e] * scale[c] + offset[c];
        if (derivative == Derivative::kAtResidual) z[e] += load(others[u].value[e]);
      }
      if constexpr (derivative == Derivative::kOfOutput)
        multiply_by_derivative_of_result(act, dz, z);
      else
        multiply_by_derivative(act, dz, z);
      if constexpr (derivative != Derivative::kAtInput) {
        const auto written = rounded_pack<T>(dz);
        store_piece(static_cast<T*>(a.dz), pieces[u], written);
        unpack(written, dz);
      }
#pragma unroll
      for (int e = 0; e < n; ++e) {
        const int c = Walk::channel_of(e);
        if (!pieces[u].has(e)) continue;
        sums[c].first += dz[e];
        sums[c].second += dz[e] * (d[e] * rstd[c]);
      }
    }
  }
  merge_threads(sums, plan.lanes);
  if (threadIdx.x >= plan.lanes || !walk.has_channel()) return;
#pragma unroll
  for (int c = 0; c < Walk::channels; ++c) out.partials[walk.chunk * plan.channels + walk.channel + c] = sums[c];
}

// dx = dz * scale + (x - shift) * rstd * slope + constant, where dz is dy times the activation's derivative or, after a
// residual (then act is the identity), what add_gradients wrote. Merges the sums of all chunks first, where there are
// any, and writes the parameters' gradients; without dx that is all.
template <class T, class Walk, class Act>
__global__ void __launch_bounds__(kThreads, kSumsBlocks)
    differentiate(BatchNormBackward a, typename Walk::Plan plan, typename Walk::Plan sums_plan,
                  Workspace<Compute<T>> partial, Act act) {
  using V = Compute<T>;
  constexpr int n = Walk::pack, unroll = packs_at_once<Walk, Act>(2);
  Walk walk(plan, /*reversed=*/true);
  const Table<V> table{dynamic_shared<V>(), plan.block_channels()};
  const int64_t channel = walk.block_channel + threadIdx.x;
  const bool finishes = threadIdx.x < plan.block_channels() && channel < plan.channels;
  const Sums<double>* totals = nullptr;
  if (a.needs_sums()) {
    totals = total_chunks(sums_plan, walk.block_channel, [&](int64_t chunk, int64_t c) {
      const Sums<V> sums = partial.partials[chunk * plan.channels + c];
      return Sums<double>{sums.first, sums.second};
    });
  }
  if (finishes) {
    set_forward(a, table, channel);
    const Sums<double> total = totals ? totals[threadIdx.x] : Sums<double>{};
    const BackwardCoefficients<V> c(total.first, total.second, a.mean[channel], table.at(kShift, threadIdx.x),
                                    a.rstd[channel], a.weight.get_or(channel, 1), double(a.layout.per_channel()),
                                    a.training);
    table.at(kSlope, threadIdx.x) = c.slope;
    table.at(kConstant, threadIdx.x) = c.constant;
    if (walk.chunk == 0 && a.dweight) a.dweight.set(channel, c.dweight);
    if (walk.chunk == 0 && a.dbias) a.dbias.set(channel, total.first);
  }
  if (!a.dx) return;
  __syncthreads();
  V shift[Walk::channels], scale[Walk::channels], offset[Walk::channels];
  V rstd[Walk::channels], slope[Walk::channels], constant[Walk::channels];
  table.get(kShift, walk, shift);
  table.get(kScale, walk, scale);
  table.get(kOffset, walk, offset);
  table.get(kRstd, walk, rstd);
  table.get(kSlope, walk, slope);
  table.get(kConstant, walk, constant);

  const T *x = static_cast<const T*>(a.x), *dz_or_dy = static_cast<const T*>(a.after_residual() ? a.dz : a.dy);
  while (walk.more()) {
    Piece<n> pieces[unroll];
    Pack<T, n> packs[unroll], gradients[unroll];
    walk.next(pieces);
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      packs[u] = load_piece<Read::kOnce>(x, pieces[u], plan.numel());
      gradients[u] = load_piece<Read::kOnce>(dz_or_dy, pieces[u], plan.numel());
    }
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      V d[n], z[n], dz[n];
      unpack(packs[u], d);
      unpack(gradients[u], dz);
#pragma unroll
      for (int e = 0; e < n; ++e) {
        const int c = Walk::channel_of(e);
        d[e] -= shift[c];
        z[e] = d[e] * scale[c] + offset[c];
      }
      multiply_by_derivative(act, dz, z);
#pragma unroll
      for (int e = 0; e < n; ++e) {
        const int c = Walk::channel_of(e);
        dz[e] = dz[e] * scale[c] + (d[e] * rstd[c] * slope[c] + constant[c]);
      }
      store_piece(static_cast<T*>(a.dx), pieces[u], rounded_pack<T>(dz));
    }
  }
}

}  // namespace fusedtricks::cuda

// From the partial results of a channel to its coefficients, in shared memory, and to what is written once a channel.
#pragma once

#include "calls/batch_norm.h"
#include "cuda/batch_norm/partials.cuh"

namespace fusedtricks::cuda {

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
  const int64_t number = walk.block_channel + threadIdx.x, C = a.layout.channels;
  Sums<double> total;
  if (a.training) {
    total = total_partials(plan, C, walk.block_channel, memory, [&](int64_t partial, int64_t c) {
      const Sums<V> moments = in.read(partial, c);
      const double count = double(plan.count(partial, c)), mean = moments.first;
      return Sums<double>{count * mean, double(moments.second) + count * mean * mean};
    });
  }
  if (int(threadIdx.x) < plan.block_channels() && number < plan.channels) {
    const int64_t channel = unfolded(number, C);
    ChannelStatistics s;
    if (a.training) {
      const Pivot<V> pivot = in.read_pivot(channel);
      const double share = 1 / double(a.layout.per_channel()), unscale = 1 / double(pivot.scale);
      const double mean = total.first * share;
      s = {pivot.shift + mean * unscale, (total.second * share - mean * mean) * unscale * unscale};
    } else {
      s = a.running_statistics(channel);
    }
    table.set(threadIdx.x,
              ForwardCoefficients<V>(s.mean, a.rstd_of(s), a.weight.get_or(channel, 1), a.bias.get_or(channel, 0)));
    if (records && number < C) a.record(channel, s);
  }
  __syncthreads();
}

// Sets the table of a block's channels from the statistics that the forward saved: of either direction's call.
template <class V, class Walk, class Call>
__device__ void set_forward(const Call& a, const typename Walk::Plan& plan, const Walk& walk, const Table<V>& table) {
  const int64_t number = walk.block_channel + threadIdx.x;
  if (int(threadIdx.x) < plan.block_channels() && number < plan.channels) {
    const int64_t channel = unfolded(number, a.layout.channels);
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
  const int64_t number = walk.block_channel + threadIdx.x, C = a.layout.channels;
  Sums<double> total;
  if (a.needs_sums()) {
    total = total_partials(plan, C, walk.block_channel, memory, [&](int64_t partial, int64_t c) {
      const Sums<V> sums = in.read(partial, c);
      return Sums<double>{sums.first, sums.second};
    });
  }
  if (int(threadIdx.x) < plan.block_channels() && number < plan.channels) {
    const int64_t channel = unfolded(number, C);
    const BackwardCoefficients<V> c(total.first, total.second, a.mean[channel], table.at(kShift, threadIdx.x),
                                    a.rstd[channel], a.weight.get_or(channel, 1), double(a.layout.per_channel()),
                                    a.training);
    table.at(kSlope, threadIdx.x) = c.slope;
    table.at(kConstant, threadIdx.x) = c.constant;
    if (records && number < C && a.dweight) a.dweight.set(channel, c.dweight);
    if (records && number < C && a.dbias) a.dbias.set(channel, total.first);
  }
  __syncthreads();
}

}  // namespace fusedtricks::cuda

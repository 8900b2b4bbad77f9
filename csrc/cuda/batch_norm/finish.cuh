// From the partial results of a channel to its coefficients, which a block keeps in shared memory, and to the values
// that are written once per channel.
#pragma once

#include "calls/batch_norm.h"
#include "cuda/batch_norm/partials.cuh"

namespace fusedtricks::cuda {

// The coefficients of a block's channels in shared memory, as one array for each kind.
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

// The coefficients of a thread's own channels in registers: the first `kinds` of Coefficient.
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

// Fills the table of a block's channels from the statistics that an earlier call recorded. The call is one of either
// direction. Every thread of the block must call it, and all can use the table when it returns.
template <class V, class Walk, class Call>
__device__ void set_forward(const Call& a, const typename Walk::Plan& plan, const Walk& walk, const Table<V>& table) {
  const int64_t number = walk.block_channel + threadIdx.x;
  if (int(threadIdx.x) < plan.block_channels() && number < plan.channels) {
    const int64_t channel = unfolded(number, a.layout.channels);
    const double weight = a.weight.get_or(channel, 1), bias = a.bias.get_or(channel, 0);
    table.set(threadIdx.x, ForwardCoefficients<V>(a.mean[channel], a.rstd[channel], weight, bias));
  }
  __syncthreads();
}

// Fills the table of a block's channels from their statistics: in training these are the merged partial results of all
// chunks, otherwise the running statistics or recorded ones. records: this block also writes them. Every thread of the
// block must call it, and all can use the table when it returns.
template <class V, class Walk>
__device__ void finish_statistics(const BatchNormForward& a, const typename Walk::Plan& plan, const Walk& walk,
                                  const Workspace<V>& in, bool records, const Table<V>& table, void* memory) {
  if (a.recorded) return set_forward(a, plan, walk, table);
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
    const double weight = a.weight.get_or(channel, 1), bias = a.bias.get_or(channel, 0);
    table.set(threadIdx.x, ForwardCoefficients<V>(s.mean, a.rstd_of(s), weight, bias));
    if (records && number < C) a.record(channel, s);
  }
  __syncthreads();
}

// Adds slope and constant to the table, from the sums of all chunks; both are zero if the call needs no sums. records:
// this block also writes the gradients of the parameters. Every thread of the block must call it, and all can use the
// table when it returns.
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
    const double weight = a.weight.get_or(channel, 1), count = double(a.layout.per_channel());
    const BackwardCoefficients<V> c(total.first, total.second, a.mean[channel], table.at(kShift, threadIdx.x),
                                    a.rstd[channel], weight, count, a.training);
    table.at(kSlope, threadIdx.x) = c.slope;
    table.at(kConstant, threadIdx.x) = c.constant;
    if (records && number < C && a.dweight) a.dweight.set(channel, c.dweight);
    if (records && number < C && a.dbias) a.dbias.set(channel, total.first);
  }
  __syncthreads();
}

}  // namespace fusedtricks::cuda

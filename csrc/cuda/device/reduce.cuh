// Reductions over the threads of a block, and over the partial results that blocks leave in memory. Both always add in
// the same order, without atomic operations, so that results do not change from run to run.
#pragma once

#include "cuda/device/walk.cuh"

namespace fusedtricks::cuda {

// Two sums over the same elements.
template <class V>
struct Sums {
  V first = 0, second = 0;

  FT_INLINE void merge(const Sums& other) {
    first += other.first;
    second += other.second;
  }
};

// Merges the values of all threads that have the same threadIdx.x % width. The threads below `width` get the result.
// Threads beyond the last multiple of `width` take no part, but every thread of the block must call it. memory: shared
// memory of merge_bytes<Value>(count) bytes.
template <class Value, int count>
__device__ void merge_threads(Value (&values)[count], int width, void* memory) {
  Value* shared = static_cast<Value*>(memory);
  const int thread = threadIdx.x;
  // Teams of `width` threads. Each round the upper half of the teams hands its values to the lower half.
  for (int teams = kThreads / width; teams > 1;) {
    const int kept = (teams + 1) / 2 * width, given = teams * width - kept;
    if (thread >= kept && thread < kept + given) {
#pragma unroll
      for (int i = 0; i < count; ++i) shared[i * given + thread - kept] = values[i];
    }
    __syncthreads();
    if (thread < given) {
#pragma unroll
      for (int i = 0; i < count; ++i) values[i].merge(shared[i * given + thread]);
    }
    __syncthreads();
    teams = (teams + 1) / 2;
  }
}

// Bytes of shared memory that merge_threads uses.
template <class Value>
constexpr size_t merge_bytes(int count) {
  return sizeof(Value) * count * (kThreads / 2);
}

// Adds up term(partial, channel) over all partial results of each of the block's channels. A thread gets the sums of
// the channel with its own number; C is the number of channels of the tensor. Every thread of the block must call it,
// and the block must meet at a barrier before it uses `memory` for anything else.
template <class Plan, class Term>
__device__ Sums<double> total_partials(const Plan& plan, int64_t C, int64_t block_channel, void* memory,
                                       const Term& term) {
  // Several channels of a fold can stand for one channel of the tensor. Then the first of them has its sums.
  const int width = C < plan.block_channels() ? int(C) : plan.block_channels();
  const int team = threadIdx.x / width, teams = kThreads / width;
  const int64_t channel = block_channel + threadIdx.x % width;
  Sums<double> sums[1];
  if (team < teams && channel < plan.channels) {
    const int64_t of_tensor = unfolded(channel, C);
#pragma unroll 4
    for (int64_t partial = team; partial < plan.partials(); partial += teams) {
      sums[0].merge(term(partial, of_tensor));
    }
  }
  merge_threads(sums, width, memory);
  Sums<double>* totals = static_cast<Sums<double>*>(memory) + kThreads / 2;
  if (int(threadIdx.x) < width) totals[threadIdx.x] = sums[0];
  __syncthreads();
  return totals[threadIdx.x % width];
}

// Bytes of shared memory that total_partials uses.
template <class Plan>
constexpr size_t total_bytes(const Plan& plan) {
  return sizeof(Sums<double>) * (kThreads / 2 + plan.block_channels());
}

}  // namespace fusedtricks::cuda

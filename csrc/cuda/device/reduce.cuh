// Reductions over the threads of a block, and over the partial results of blocks: always the same tree, no atomics.
#pragma once

#include "cuda/device/walk.cuh"

namespace fusedtricks::cuda {

// Two sums of one channel.
template <class V>
struct Sums {
  V first = 0, second = 0;

  FT_INLINE void merge(const Sums& other) {
    first += other.first;
    second += other.second;
  }
};

// Count, mean and sum of squared deviations of one channel, merged by Chan, Golub & LeVeque's formula (1979).
template <class V>
struct Moments {
  V count = 0, mean = 0, m2 = 0;

  FT_INLINE void merge(const Moments& other) {
    const V total = count + other.count;
    if (total == V(0)) return;
    const V share = other.count / total, delta = other.mean - mean;
    // Where the difference is not finite, an infinite mean stays infinite.
    mean = delta * V(0) == V(0) ? mean + delta * share : mean * (count / total) + other.mean * share;
    m2 += other.m2 + (delta * count) * (delta * share);
    count = total;
  }
};

// Merges the values of all threads whose number is the same modulo `width`: the threads below `width` get the result.
// Those behind the last whole `width` are left out. Every thread of the block has to call it.
template <class Value, int count>
__device__ void merge_threads(Value (&values)[count], int width, void* memory) {
  Value* shared = static_cast<Value*>(memory);
  const int thread = threadIdx.x;
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

// Bytes of shared memory that merge_threads takes.
template <class Value>
constexpr size_t merge_bytes(int count) {
  return sizeof(Value) * count * (kThreads / 2);
}

// The sums over all partial results of what term(partial, channel) gives: for the thread of that number, those of the
// block's channel, of C in the tensor. Every thread of the block has to call it, and to meet before the memory is used
// again.
template <class Plan, class Term>
__device__ Sums<double> total_partials(const Plan& plan, int64_t C, int64_t block_channel, void* memory,
                                       const Term& term) {
  // Of channels that stand for the same one the first gives it.
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

// Bytes of shared memory that total_partials takes.
template <class Plan>
constexpr size_t total_bytes(const Plan& plan) {
  return sizeof(Sums<double>) * (kThreads / 2 + plan.block_channels());
}

}  // namespace fusedtricks::cuda

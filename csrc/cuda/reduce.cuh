// Reductions over the threads of a block, and over the partial results of blocks: always the same tree, no atomics.
#pragma once

#include "walk.cuh"

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

// Merges the values of all threads whose number is the same modulo `width`, a power of two: the threads below `width`
// get the result. Every thread of the block has to call it.
template <int threads, class Value, int count>
__device__ void merge_threads(Value (&values)[count], int width, void* memory) {
  Value* shared = static_cast<Value*>(memory);
  const int thread = threadIdx.x;
  for (int half = threads / 2; half >= width; half /= 2) {
    if (thread >= half && thread < 2 * half) {
#pragma unroll
      for (int i = 0; i < count; ++i) shared[i * half + thread - half] = values[i];
    }
    __syncthreads();
    if (thread < half) {
#pragma unroll
      for (int i = 0; i < count; ++i) values[i].merge(shared[i * half + thread]);
    }
    __syncthreads();
  }
}

// Bytes of shared memory that merge_threads takes.
template <class Value>
constexpr size_t merge_bytes(int threads, int count) {
  return sizeof(Value) * count * (threads / 2);
}

// The sums over all chunks of what term(chunk, channel) gives, for the channels of a block: totals[number of channel
// in the block], behind what merge_threads takes, which is free again. Every thread of the block has to call it.
template <int threads, class Plan, class Term>
__device__ Sums<double>* total_chunks(const Plan& plan, int64_t block_channel, void* memory, const Term& term) {
  const int width = plan.block_channels();
  const int64_t channel = block_channel + threadIdx.x % width;
  Sums<double> sums[1];
  if (channel < plan.channels) {
#pragma unroll 4
    for (int64_t chunk = threadIdx.x / width; chunk < plan.division.chunks; chunk += threads / width) {
      sums[0].merge(term(chunk, channel));
    }
  }
  merge_threads<threads>(sums, width, memory);
  Sums<double>* totals = static_cast<Sums<double>*>(memory) + threads / 2;
  if (int(threadIdx.x) < width) totals[threadIdx.x] = sums[0];
  __syncthreads();
  return totals;
}

// Bytes of shared memory that total_chunks takes.
template <class Plan>
constexpr size_t total_bytes(int threads, const Plan& plan) {
  return sizeof(Sums<double>) * (threads / 2 + plan.block_channels());
}

}  // namespace fusedtricks::cuda

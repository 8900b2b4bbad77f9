// What the persistent kernels of batch_norm_act share. They read the input from memory once: a block keeps its packs in
// shared memory from the sweep that computes statistics or sums to the sweep that writes the result. What does not fit
// is read again, beginning with what was read last.
//
// Every group of channels is worked on by a slot, a team of blocks that have a chunk of the group each; they are the
// members of the slot. There are as many slots as the GPU has room for, and a slot takes every `slots`-th group in
// turn. While the results of a group are written, the packs of the next one are loaded in their place; and while a
// block waits for other members, another block of its multiprocessor works.
#pragma once

#include "cuda/batch_norm/partials.cuh"

namespace fusedtricks::cuda {

// How a persistent kernel uses its blocks and its shared memory.
struct Persistent {
  int slots = 0;  // groups that are worked on at the same time
  int steps = 0;  // steps of a part whose packs are kept
  // Bytes of shared memory: first the packs that are kept, then scratch memory, then the table of coefficients.
  int64_t kept_bytes = 0, scratch_bytes = 0;
  uint32_t* arrivals = nullptr;  // a counter for every slot, kArrivalsApart numbers from the next
};

constexpr int kArrivalsApart = 32;  // a line of the cache: blocks that wait for one counter do not disturb the others

// Whether the partial results of a channel come from several blocks: from all members of a slot, or, if rows are
// folded, from all groups in which the fold has the channel.
template <class Plan>
FT_INLINE bool is_shared(const Plan& plan) {
  return plan.division.chunks > 1 || (plan.fold > 1 && plan.groups > 1);
}

// Which member of which slot a block is.
struct Member {
  int slot, chunk;

  template <class Plan>
  explicit __device__ Member(const Plan& plan)
      : slot(int(blockIdx.x) / int(plan.division.chunks)), chunk(int(blockIdx.x) % int(plan.division.chunks)) {}

  // Waits until all partial results of the group are there. For its first group a block waits for the whole grid: so
  // the counters are zero before anyone uses them, and the channels of a fold have the results of all groups.
  template <class Plan>
  __device__ __forceinline__ void meet(const Plan& plan, const Persistent& persistent, int group) const {
    uint32_t* arrivals = persistent.arrivals + slot * kArrivalsApart;
    if (!is_shared(plan)) {
      __syncthreads();
    } else if (group == slot) {
      if (chunk == 0 && threadIdx.x == 0) *arrivals = 0;
      grid_sync();
    } else {
      meet_blocks(arrivals, uint32_t((group - slot) / persistent.slots) * uint32_t(plan.division.chunks));
    }
  }
};

// A thread's packs of one tensor that are kept in shared memory. Those of a step are next to each other for all threads
// of the block. A thread only uses its own packs, so it needs no barrier for them.
template <class T, int n>
class KeptPacks {
 public:
  __device__ __forceinline__ KeptPacks(void* shared, int steps)
      : packs_(static_cast<Pack<T, n>*>(shared) + threadIdx.x), steps_(steps) {}

  // Starts to copy the pieces of a tensor that belong to `step` and the steps after it; wait_for_copies() waits for
  // them.
  template <int count>
  __device__ __forceinline__ void load(int step, const T* tensor, const Piece<n> (&pieces)[count], int64_t numel) {
#pragma unroll
    for (int u = 0; u < count; ++u) {
      if (step + u < steps_) copy_piece_async(&packs_[(step + u) * kThreads], tensor, pieces[u], numel);
    }
  }

  // The packs of `step` and the steps after it. Where the thread has no piece in a step, as after the last step, the
  // pack can be anything.
  template <int count>
  __device__ __forceinline__ void get(int step, Pack<T, n> (&packs)[count]) const {
#pragma unroll
    for (int u = 0; u < count; ++u) packs[u] = packs_[(step + u < steps_ ? step + u : step) * kThreads];
  }

  template <int count>
  __device__ __forceinline__ void set(int step, const Pack<T, n> (&packs)[count]) {
#pragma unroll
    for (int u = 0; u < count; ++u) {
      if (step + u < steps_) packs_[(step + u) * kThreads] = packs[u];
    }
  }

 private:
  Pack<T, n>* packs_;
  int steps_;
};

}  // namespace fusedtricks::cuda

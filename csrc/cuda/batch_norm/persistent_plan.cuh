// What the kernels of batch_norm_hold.cuh share: the packs that a block holds in shared memory between its two sweeps,
// and how blocks share the channels, take turns and wait for each other.
#pragma once

#include "cuda/batch_norm/partials.cuh"

namespace fusedtricks::cuda {

// Each group of channels is held by a slot: as many blocks as it takes, its members, a chunk of the group each. A slot
// takes every `slots`-th group in turn.
struct Hold {
  int slots;
  int steps;                     // of a part that are held, a pack of each held tensor a step and thread
  int64_t held, scratch;         // bytes of shared memory, in this order; then the table of coefficients
  uint32_t* arrivals = nullptr;  // of each slot, kArrivalsApart from that of the next, for its members to count
};

constexpr int kArrivalsApart = 32;  // a line of the cache, so that those who wait for one do not wait for another

// Whether a channel has partial results of several blocks: of all members, and of all groups that the channels of a
// fold lie in.
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

  // Waits until all partial results of the group are there. For the first group the whole grid meets: then arrivals are
  // set to zero before they are counted, and the channels of a fold have the results of all groups.
  template <class Plan>
  __device__ __forceinline__ void meet(const Plan& plan, const Hold& hold, int group) const {
    uint32_t* arrivals = hold.arrivals + slot * kArrivalsApart;
    if (!is_shared(plan)) {
      __syncthreads();
    } else if (group == slot) {
      if (chunk == 0 && threadIdx.x == 0) *arrivals = 0;
      grid_sync();
    } else {
      meet_blocks(arrivals, uint32_t((group - slot) / hold.slots) * uint32_t(plan.division.chunks));
    }
  }
};

// A thread's packs of one tensor in shared memory, those of a step side by side.
template <class T, int n>
class Held {
 public:
  __device__ __forceinline__ Held(void* shared, int steps)
      : packs_(static_cast<Pack<T, n>*>(shared) + threadIdx.x), steps_(steps) {}

  // Starts to copy pieces of the tensor to where the packs of that step and the next are, for wait_for_copies to wait
  // for. What was there has been used: a thread reads and writes its own packs alone.
  template <int count>
  __device__ __forceinline__ void load(int step, const T* tensor, const Piece<n> (&pieces)[count], int64_t numel) {
#pragma unroll
    for (int u = 0; u < count; ++u) {
      if (step + u < steps_) copy_piece_async(&packs_[(step + u) * kThreads], tensor, pieces[u], numel);
    }
  }

  // The packs of that step and the next; anything where the pieces are empty, as those behind the last are.
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

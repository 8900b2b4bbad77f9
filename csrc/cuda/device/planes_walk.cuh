// The walk over contiguous tensors (NCHW): planes of S positions.
#pragma once

#include "cuda/device/walk.cuh"

namespace fusedtricks::cuda {

// All threads of a block have the same channel. A plane may begin and end in the middle of a pack, which it then shares
// with its neighbours; so it can have one pack more than its length alone would need.
template <int n>
struct PlanesWalk {
  static constexpr int pack = n, channels = 1;

  struct Plan {
    static constexpr int fold = 1;
    int64_t items, channels, groups;  // items: packs of all planes of a channel
    int lanes;
    Chunks division;
    int64_t samples, positions, packs;  // packs: of a plane

    static Plan make(const Layout& layout) {
      const int64_t positions = layout.positions;
      Plan plan;
      plan.packs = positions % n ? (positions + 2 * n - 2) / n : positions / n;
      plan.items = layout.samples * plan.packs;
      plan.channels = layout.channels;
      plan.groups = layout.channels;
      plan.lanes = 1;
      plan.division = Chunks::make(plan.items, /*chunks=*/1);
      plan.samples = layout.samples;
      plan.positions = positions;
      return plan;
    }

    FT_INLINE int teams() const { return kThreads; }
    FT_INLINE int block_channels() const { return 1; }
    FT_INLINE int64_t numel() const { return samples * channels * positions; }
    FT_INLINE int64_t sample() const { return channels * positions; }
    FT_INLINE int64_t start(int64_t sample, int64_t channel) const { return (sample * channels + channel) * positions; }
    // Elements that a channel has before an item.
    FT_INLINE int64_t before(int64_t item, int64_t channel) const {
      const int64_t sample = item / packs, elements = item % packs * n - start(sample, channel) % n;
      return sample * positions + (elements < 0 ? 0 : elements < positions ? elements : positions);
    }
    // Partial results that a channel has, and the elements that one is made of.
    FT_INLINE int64_t partials() const { return division.chunks; }
    FT_INLINE int64_t count(int64_t chunk, int64_t channel) const {
      return before(division.start(chunk + 1), channel) - before(division.start(chunk), channel);
    }
    // There is no cut pack.
    FT_INLINE Piece<n> cut(int64_t, int64_t) const { return {}; }
  };

  int64_t block_channel, channel;  // both are the channel of the block

  // reversed: begins with the last packs, which a walk before read last.
  __device__ PlanesWalk(const Plan& p, int64_t chunk, int64_t group, bool reversed, Steps steps = {})
      : block_channel(group), channel(group), plan_(p) {
    const int64_t first = p.division.start(chunk) + steps.first * kThreads;
    const int64_t chunk_end = p.division.start(chunk + 1), last = first + steps.count * kThreads;
    const int64_t end = last < chunk_end ? last : chunk_end, thread = threadIdx.x;
    left_ = channel < p.channels && end - first > thread ? int((end - first - 1 - thread) / kThreads) + 1 : 0;
    const int64_t item = left_ <= 0 ? 0 : reversed ? end - 1 - thread : first + thread;
    start_ = p.start(item / p.packs, channel);
    at_ = item % p.packs * n;
    // A step leads kThreads packs on: over so many samples, and over so many packs of the plane there. A step back is
    // one sample more back and then forward within the plane, so that advance() has to handle only one kind of
    // overflow.
    const int64_t samples = kThreads / p.packs, packs = kThreads % p.packs;
    step_start_ = (reversed ? -1 - samples : samples) * p.sample();
    step_ = (reversed ? p.packs - packs : packs) * n;
  }

  __device__ __forceinline__ bool more() const { return left_ > 0; }
  // The next pieces; those after the end of the walk are empty.
  template <int count>
  __device__ __forceinline__ void next(Piece<n> (&pieces)[count]) {
#pragma unroll
    for (int u = 0; u < count; ++u) {
      pieces[u] = piece(left_ > u);
      advance();
    }
    left_ -= count;
  }
  // As in RowsWalk.
  static __device__ __forceinline__ int channel_of(int) { return 0; }
  template <class F>
  static __device__ __forceinline__ void of_channel(int, const F& f) {
#pragma unroll
    for (int e = 0; e < n; ++e) f(e);
  }
  static __device__ __forceinline__ int elements(const Piece<n>& piece) {
    return piece.empty() ? 0 : piece.last - piece.first;
  }

 private:
  Plan plan_;
  int64_t start_;              // index of the plane's first element
  int64_t at_;                 // elements from the pack in which the plane begins to the current pack
  int64_t step_start_, step_;  // what a step adds to these two
  int left_;                   // pieces

  __device__ __forceinline__ void advance() {
    const int64_t end = plan_.packs * n;
    start_ += step_start_;
    at_ += step_;
    if (at_ >= end) at_ -= end, start_ += plan_.sample();
  }

  __device__ __forceinline__ Piece<n> piece(bool exists) const {
    const int before = int(start_) & (n - 1);  // elements of the plane's first pack that belong to the plane before
    const int64_t left = plan_.positions + before - at_;
    return {start_ - before + at_, at_ == 0 ? before : 0, !exists ? 0 : left < n ? int(left) : n};
  }
};

}  // namespace fusedtricks::cuda

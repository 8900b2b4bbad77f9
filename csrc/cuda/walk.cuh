// How the threads of a block walk over their part of a (N, C, *) tensor, in either memory layout: which channels a
// thread has, which packs it visits, how many elements that makes.
//
// The grid is chunks x groups of channels. A block has `lanes` lanes, each with channels of its own, and teams of one
// thread per lane that share the block's elements out.
#pragma once

#include <algorithm>

#include "../layout.h"
#include "pack.cuh"

namespace fusedtricks::cuda {

constexpr int kThreads = 256;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of C channels (channels_last, (N, C)): a thread has the n channels of a pack and visits it in every row.
template <int n>
struct RowsWalk {
  static constexpr int pack = n, channels = n;

  struct Plan {
    int64_t rows, channels, groups, chunks;
    int lanes;

    // Of at most `blocks` blocks, as far as the groups of channels allow, each with `unroll` packs a thread at least.
    static Plan make(const Layout& layout, int64_t blocks, int unroll) {
      Plan p;
      p.rows = layout.per_channel();
      p.channels = layout.channels;
      p.lanes = 1;
      while (p.lanes < (n > 1 ? 8 : 32) && p.lanes * n < layout.channels) p.lanes *= 2;
      p.groups = ceil_div(layout.channels, p.lanes * n);
      const int64_t useful = ceil_div(p.rows, int64_t(kThreads / p.lanes) * unroll);
      p.chunks = std::max<int64_t>(1, std::min(blocks / p.groups, useful));
      return p;
    }

    FT_INLINE int block_channels() const { return lanes * n; }
    FT_INLINE int64_t blocks() const { return groups * chunks; }
    FT_INLINE int64_t numel() const { return rows * channels; }
    FT_INLINE int64_t first_row(int64_t chunk) const { return rows / chunks * chunk + rows % chunks * chunk / chunks; }
    // Elements of one channel in a chunk.
    FT_INLINE int64_t count(int64_t chunk, int64_t) const { return first_row(chunk + 1) - first_row(chunk); }
  };

  static bool takes(const Layout& layout) { return layout.rows && layout.channels % n == 0; }

  int64_t chunk, block_channel, channel;

  // reversed: the chunk's last rows first, which the kernel before this one read last.
  __device__ RowsWalk(const Plan& p, bool reversed) : chunk(blockIdx.x / p.groups), channels_(p.channels) {
    const int lane = threadIdx.x % p.lanes, team = threadIdx.x / p.lanes, teams = kThreads / p.lanes;
    block_channel = blockIdx.x % p.groups * p.lanes * n;
    channel = block_channel + lane * n;
    const int64_t first = p.first_row(chunk), end = p.first_row(chunk + 1);
    left_ = has_channel() ? end - first - team : 0;
    index_ = (reversed ? end - 1 - team : first + team) * p.channels + channel;
    teams_ = teams;
    step_ = (reversed ? -teams : teams) * p.channels;
  }

  __device__ __forceinline__ bool has_channel() const { return channel < channels_; }
  __device__ __forceinline__ bool more() const { return left_ > 0; }
  // The next pieces, of which the first is not empty as long as there are more.
  template <int count>
  __device__ __forceinline__ void next(Piece<n> (&pieces)[count]) {
#pragma unroll
    for (int u = 0; u < count; ++u) pieces[u] = {index_ + u * step_, 0, left_ > u * teams_ ? n : 0};
    index_ += count * step_;
    left_ -= count * teams_;
  }
  // The i-th pack of the tensor for this thread's channels.
  static __device__ __forceinline__ Piece<n> sample(const Plan& p, int64_t channel, int i) {
    return {i * p.channels + channel, 0, i < p.rows && channel < p.channels ? n : 0};
  }
  // Which of the thread's channels an element of a pack belongs to.
  static __device__ __forceinline__ int channel_of(int element) { return element; }
  // Calls f(element) for the elements of a pack that belong to the thread's channel of that number.
  template <class F>
  static __device__ __forceinline__ void of_channel(int number, const F& f) {
    f(number);
  }

 private:
  int64_t channels_, index_, left_, step_;
  int teams_;
};

// Planes of S positions (NCHW): a thread has one channel. A plane may begin anywhere in a pack, so it has up to one
// pack more than fit, whose ends belong to its neighbours.
template <int n>
struct PlanesWalk {
  static constexpr int pack = n, channels = 1;

  struct Plan {
    int64_t samples, channels, positions, packs, groups, chunks;  // packs: of one plane
    int lanes;

    static Plan make(const Layout& layout, int64_t blocks, int unroll) {
      Plan p;
      p.samples = layout.samples;
      p.channels = p.groups = layout.channels;
      p.lanes = 1;
      p.positions = layout.positions;
      p.packs = p.positions % n ? (p.positions + 2 * n - 2) / n : p.positions / n;
      const int64_t useful = ceil_div(p.samples * p.packs, int64_t(kThreads) * unroll);
      p.chunks = std::max<int64_t>(1, std::min(blocks / p.groups, useful));
      return p;
    }

    FT_INLINE int block_channels() const { return 1; }
    FT_INLINE int64_t blocks() const { return groups * chunks; }
    FT_INLINE int64_t numel() const { return samples * channels * positions; }
    FT_INLINE int64_t first_item(int64_t chunk) const {
      const int64_t items = samples * packs;
      return items / chunks * chunk + items % chunks * chunk / chunks;
    }
    FT_INLINE int64_t start(int64_t sample, int64_t channel) const { return (sample * channels + channel) * positions; }
    // Elements of a channel before an item.
    FT_INLINE int64_t before(int64_t item, int64_t channel) const {
      const int64_t sample = item / packs, elements = item % packs * n - start(sample, channel) % n;
      return sample * positions + (elements < 0 ? 0 : elements < positions ? elements : positions);
    }
    FT_INLINE int64_t count(int64_t chunk, int64_t channel) const {
      return before(first_item(chunk + 1), channel) - before(first_item(chunk), channel);
    }
  };

  static bool takes(const Layout& layout) { return !layout.rows; }

  int64_t chunk, block_channel, channel;

  // reversed: the chunk's last packs first.
  __device__ PlanesWalk(const Plan& p, bool reversed)
      : chunk(blockIdx.x / p.groups), block_channel(blockIdx.x % p.groups), channel(block_channel), plan_(p) {
    const int64_t first = p.first_item(chunk), end = p.first_item(chunk + 1);
    const int64_t item = reversed ? end - 1 - int(threadIdx.x) : first + threadIdx.x;
    left_ = end - first - threadIdx.x;
    sample_ = left_ > 0 ? item / p.packs : 0;
    number_ = left_ > 0 ? item % p.packs : 0;
    step_samples_ = kThreads / p.packs;
    step_packs_ = kThreads % p.packs;
    if (reversed) step_samples_ = -step_samples_, step_packs_ = -step_packs_;
  }

  __device__ __forceinline__ bool has_channel() const { return true; }
  __device__ __forceinline__ bool more() const { return left_ > 0; }
  template <int count>
  __device__ __forceinline__ void next(Piece<n> (&pieces)[count]) {
#pragma unroll
    for (int u = 0; u < count; ++u) pieces[u] = next();
  }
  static __device__ __forceinline__ Piece<n> sample(const Plan& p, int64_t channel, int i) {
    return piece_at(p, 0, channel, i, i < p.packs);
  }
  static __device__ __forceinline__ int channel_of(int) { return 0; }
  template <class F>
  static __device__ __forceinline__ void of_channel(int, const F& f) {
#pragma unroll
    for (int e = 0; e < n; ++e) f(e);
  }

 private:
  Plan plan_;
  int64_t left_, sample_, number_, step_samples_, step_packs_;

  __device__ __forceinline__ Piece<n> next() {
    const Piece<n> piece = piece_at(plan_, sample_, channel, number_, left_ > 0);
    left_ -= kThreads;
    sample_ += step_samples_;
    number_ += step_packs_;
    if (number_ >= plan_.packs) number_ -= plan_.packs, ++sample_;
    if (number_ < 0) number_ += plan_.packs, --sample_;
    return piece;
  }

  static __device__ __forceinline__ Piece<n> piece_at(const Plan& p, int64_t sample, int64_t channel, int64_t number,
                                                      bool exists) {
    const int64_t start = p.start(sample, channel), index = start / n * n + number * n;
    const int64_t first = start - index, last = start + p.positions - index;
    return {index, first > 0 ? int(first) : 0, !exists ? 0 : last < n ? int(last) : n};
  }
};

}  // namespace fusedtricks::cuda

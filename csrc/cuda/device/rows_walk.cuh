// The walk over channels_last tensors, and over (N, C) matrices: rows of C channels.
#pragma once

#include <numeric>

#include "cuda/device/walk.cuh"

namespace fusedtricks::cuda {

// A thread has the n channels of a pack and visits that pack in the rows of its team.
//
// Where C is not a multiple of n, the walk folds the rows: it takes as many neighbouring rows of the tensor as make
// whole packs for one row, whose channel v is the tensor's channel v % C. The last of these rows may be short and end
// in the middle of a pack. This cut pack is not among the pieces of the walk, because its channels would then have
// different numbers of elements.
template <int n>
struct RowsWalk {
  static constexpr int pack = n, channels = n;

  struct Plan {
    int64_t items, channels, groups;  // items: rows of the walk
    int lanes, fold;                  // fold: rows of the tensor that make one row of the walk
    int64_t absent, elements;         // absent: rows of the tensor that the last row of the walk lacks
    Chunks division;

    static Plan make(const Layout& layout) {
      const int64_t C = layout.channels, rows = layout.per_channel();
      const int64_t fold = std::min(n / std::gcd<int64_t>(C, n), rows), items = ceil_div(rows, fold);
      const int64_t packs = ceil_div(fold * C, n), groups = ceil_div(packs, most_lanes);
      Plan plan;
      plan.items = items;
      plan.channels = fold * C;
      plan.groups = groups;
      plan.lanes = int(ceil_div(packs, groups));
      plan.fold = int(fold);
      plan.absent = items * fold - rows;
      plan.elements = rows * C;
      plan.division = Chunks::make(items, /*chunks=*/1);
      return plan;
    }

    FT_INLINE int teams() const { return kThreads / lanes; }
    FT_INLINE int block_channels() const { return lanes * n; }
    FT_INLINE int64_t numel() const { return elements; }
    // Partial results that a channel of the tensor has: one for every chunk and row of a fold.
    FT_INLINE int64_t partials() const { return division.chunks * fold; }
    // Elements that a partial result is made of.
    FT_INLINE int64_t count(int64_t partial, int64_t) const {
      return division.items_each + (partial < division.longer * fold) - (partial >= partials() - absent);
    }
    // Elements of the last row, from a channel on.
    FT_INLINE int64_t left_in_last_row(int64_t channel) const { return elements - (items - 1) * channels - channel; }
    // The cut pack. Empty unless it begins with this channel and lies in this chunk.
    FT_INLINE Piece<n> cut(int64_t chunk, int64_t channel) const {
      const int64_t left = left_in_last_row(channel);
      return {elements - left, 0, chunk == division.chunks - 1 && 0 < left && left < n ? int(left) : 0};
    }
  };

  int64_t block_channel, channel;  // the first channel of the block, and of the thread

  // reversed: begins with the last rows, which a walk before read last.
  __device__ RowsWalk(const Plan& p, int64_t chunk, int64_t group, bool reversed, Steps steps = {}) {
    const int lane = threadIdx.x % p.lanes, team = threadIdx.x / p.lanes, teams = p.teams();
    block_channel = group * p.block_channels();
    channel = block_channel + lane * n;
    const int64_t first = p.division.start(chunk) + steps.first * teams;
    const int64_t chunk_end = p.division.start(chunk + 1), last = first + steps.count * teams;
    int64_t end = last < chunk_end ? last : chunk_end;
    if (end == p.items && p.left_in_last_row(channel) < n) --end;
    const int rows = team < teams && channel < p.channels ? int(end - first) : 0;
    left_ = rows > team ? (rows - 1 - team) / teams + 1 : 0;
    index_ = (reversed ? end - 1 - team : first + team) * p.channels + channel;
    step_ = (reversed ? -teams : teams) * p.channels;
  }

  __device__ __forceinline__ bool more() const { return left_ > 0; }
  // The next pieces. All of them are whole until the walk ends; those after its end are empty.
  template <int count>
  __device__ __forceinline__ void next(Piece<n> (&pieces)[count]) {
#pragma unroll
    for (int u = 0; u < count; ++u) pieces[u] = {index_ + u * step_, 0, left_ > u ? n : 0};
    index_ += count * step_;
    left_ -= count;
  }
  // Which of the thread's channels an element of a pack belongs to.
  static __device__ __forceinline__ int channel_of(int element) { return element; }
  // Calls f(element) for those elements of a pack that belong to the thread's channel of this number.
  template <class F>
  static __device__ __forceinline__ void of_channel(int number, const F& f) {
    f(number);
  }
  // Elements that a piece has of each of the thread's channels.
  static __device__ __forceinline__ int elements(const Piece<n>& piece) { return piece.empty() ? 0 : 1; }

 private:
  static constexpr int most_lanes = n > 1 ? 8 : 32;

  int64_t index_, step_;
  int left_;  // pieces
};

}  // namespace fusedtricks::cuda

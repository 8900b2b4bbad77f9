// How the threads of a block walk over their part of a (N, C, *) tensor, in either memory layout: which channels a
// thread has, which packs it visits, how many elements that makes.
//
// A tensor is cut into groups of neighbouring channels and chunks of items, rows or packs of a plane; a part is one
// group in one chunk. A block has `lanes` lanes, each with channels of its own, and teams of one thread per lane that
// take the items of the part in turn.
#pragma once

#include <algorithm>
#include <numeric>

#include "core/layout.h"
#include "cuda/device/pack.cuh"

namespace fusedtricks::cuda {

constexpr int kThreads = 256;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// An even division of items into chunks: the first `longer` of them have one item more than the others.
struct Chunks {
  int64_t chunks = 1, items_each = 0, longer = 0;

  static Chunks make(int64_t items, int64_t chunks) { return {chunks, items / chunks, items % chunks}; }

  FT_INLINE int64_t start(int64_t chunk) const { return items_each * chunk + (chunk < longer ? chunk : longer); }
};

// Steps of a part, in each of which every team takes an item: those from `first` on, `count` at most.
struct Steps {
  int64_t first = 0, count = int64_t(1) << 40;
};

// Rows of C channels (channels_last, (N, C)): a thread has the n channels of a pack and visits it in every row.
//
// Where C is no multiple of n the rows are folded: one of the walk is as many neighbouring ones of the tensor as are
// whole packs together, its channel v the tensor's channel v % C. The last may be short, and end within a pack: this
// one, the cut pack, is no piece of the walk, since its channels would have different numbers of elements.
template <int n>
struct RowsWalk {
  static constexpr int pack = n, channels = n;

  struct Plan {
    int64_t items, channels, groups;  // items: rows
    int lanes, fold;
    int64_t absent, elements;  // absent: rows of the tensor that the last fold lacks
    Chunks division;

    static Plan make(const Layout& layout) {
      const int64_t C = layout.channels, rows = layout.per_channel();
      const int64_t fold = std::min(n / std::gcd<int64_t>(C, n), rows), items = ceil_div(rows, fold);
      const int64_t packs = ceil_div(fold * C, n), groups = ceil_div(packs, most_lanes);
      const int lanes = int(ceil_div(packs, groups));
      return {items, fold * C, groups, lanes, int(fold), items * fold - rows, rows * C, Chunks::make(items, 1)};
    }

    FT_INLINE int teams() const { return kThreads / lanes; }
    FT_INLINE int block_channels() const { return lanes * n; }
    FT_INLINE int64_t numel() const { return elements; }
    // Partial results of a channel of the tensor, one a chunk and row of a fold; the elements that one stands for.
    FT_INLINE int64_t partials() const { return division.chunks * fold; }
    FT_INLINE int64_t count(int64_t partial, int64_t) const {
      return division.items_each + (partial < division.longer * fold) - (partial >= partials() - absent);
    }
    // Elements of the last row from a channel on.
    FT_INLINE int64_t left_in_last_row(int64_t channel) const { return elements - (items - 1) * channels - channel; }
    // The cut pack, empty where it does not begin with this channel or lies in another chunk.
    FT_INLINE Piece<n> cut(int64_t chunk, int64_t channel) const {
      const int64_t left = left_in_last_row(channel);
      return {elements - left, 0, chunk == division.chunks - 1 && 0 < left && left < n ? int(left) : 0};
    }
  };

  int64_t block_channel, channel;  // the first of the block, of the thread

  // reversed: the last rows first, which were read last before.
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
  // The next pieces, whole ones, then empty ones; the first is not empty as long as there are more.
  template <int count>
  __device__ __forceinline__ void next(Piece<n> (&pieces)[count]) {
#pragma unroll
    for (int u = 0; u < count; ++u) pieces[u] = {index_ + u * step_, 0, left_ > u ? n : 0};
    index_ += count * step_;
    left_ -= count;
  }
  // Which of the thread's channels an element of a pack belongs to.
  static __device__ __forceinline__ int channel_of(int element) { return element; }
  // Calls f(element) for the elements of a pack that belong to the thread's channel of that number.
  template <class F>
  static __device__ __forceinline__ void of_channel(int number, const F& f) {
    f(number);
  }
  // Elements of each of the thread's channels in a piece.
  static __device__ __forceinline__ int elements(const Piece<n>& piece) { return piece.empty() ? 0 : 1; }

 private:
  static constexpr int most_lanes = n > 1 ? 8 : 32;

  int64_t index_, step_;
  int left_;  // pieces
};

// Planes of S positions (NCHW): a thread has one channel. A plane may begin anywhere in a pack, so it has up to one
// pack more than fit, whose ends belong to its neighbours.
template <int n>
struct PlanesWalk {
  static constexpr int pack = n, channels = 1;

  struct Plan {
    static constexpr int fold = 1;
    int64_t items, channels, groups;  // items: packs of all planes of a channel
    int lanes;
    Chunks division;
    int64_t samples, positions, packs;

    static Plan make(const Layout& layout) {
      const int64_t positions = layout.positions;
      const int64_t packs = positions % n ? (positions + 2 * n - 2) / n : positions / n;
      const int64_t items = layout.samples * packs;
      return {items, layout.channels, layout.channels, 1, Chunks::make(items, 1), layout.samples, positions, packs};
    }

    FT_INLINE int teams() const { return kThreads; }
    FT_INLINE int block_channels() const { return 1; }
    FT_INLINE int64_t numel() const { return samples * channels * positions; }
    FT_INLINE int64_t sample() const { return channels * positions; }
    FT_INLINE int64_t start(int64_t sample, int64_t channel) const { return (sample * channels + channel) * positions; }
    // Elements of a channel before an item.
    FT_INLINE int64_t before(int64_t item, int64_t channel) const {
      const int64_t sample = item / packs, elements = item % packs * n - start(sample, channel) % n;
      return sample * positions + (elements < 0 ? 0 : elements < positions ? elements : positions);
    }
    FT_INLINE int64_t partials() const { return division.chunks; }
    FT_INLINE int64_t count(int64_t chunk, int64_t channel) const {
      return before(division.start(chunk + 1), channel) - before(division.start(chunk), channel);
    }
    FT_INLINE Piece<n> cut(int64_t, int64_t) const { return {}; }
  };

  int64_t block_channel, channel;

  __device__ PlanesWalk(const Plan& p, int64_t chunk, int64_t group, bool reversed, Steps steps = {})
      : block_channel(group), channel(group), plan_(p) {
    const int64_t first = p.division.start(chunk) + steps.first * kThreads;
    const int64_t chunk_end = p.division.start(chunk + 1), last = first + steps.count * kThreads;
    const int64_t end = last < chunk_end ? last : chunk_end, thread = threadIdx.x;
    left_ = channel < p.channels && end - first > thread ? int((end - first - 1 - thread) / kThreads) + 1 : 0;
    const int64_t item = left_ <= 0 ? 0 : reversed ? end - 1 - thread : first + thread;
    start_ = p.start(item / p.packs, channel);
    at_ = item % p.packs * n;
    // Back is as many samples back as begin on the way, and forward in the last of them.
    const int64_t samples = kThreads / p.packs, packs = kThreads % p.packs;
    step_start_ = (reversed ? -1 - samples : samples) * p.sample();
    step_ = (reversed ? p.packs - packs : packs) * n;
  }

  __device__ __forceinline__ bool more() const { return left_ > 0; }
  template <int count>
  __device__ __forceinline__ void next(Piece<n> (&pieces)[count]) {
#pragma unroll
    for (int u = 0; u < count; ++u) {
      pieces[u] = piece(left_ > u);
      advance();
    }
    left_ -= count;
  }
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
  int64_t start_, at_;  // of the plane; from the pack that it begins in
  int64_t step_start_, step_;
  int left_;  // pieces

  __device__ __forceinline__ void advance() {
    const int64_t end = plan_.packs * n;
    start_ += step_start_;
    at_ += step_;
    if (at_ >= end) at_ -= end, start_ += plan_.sample();
  }

  __device__ __forceinline__ Piece<n> piece(bool exists) const {
    const int before = int(start_) & (n - 1);  // elements of that pack that are not the plane's
    const int64_t left = plan_.positions + before - at_;
    return {start_ - before + at_, at_ == 0 ? before : 0, !exists ? 0 : left < n ? int(left) : n};
  }
};

// Calls f(pieces) for the pieces of a thread, `unroll` at a time, then for the cut pack.
template <int unroll, class Walk, class F>
__device__ __forceinline__ void for_pieces(Walk& walk, const typename Walk::Plan& plan, int64_t chunk, const F& f) {
  while (walk.more()) {
    Piece<Walk::pack> pieces[unroll];
    walk.next(pieces);
    f(pieces);
  }
  const Piece<Walk::pack> cut[1] = {plan.cut(chunk, walk.channel)};
  if (int(threadIdx.x) < plan.lanes && !cut[0].empty()) f(cut);
}

// How many pieces f gets in an argument of that type.
template <class Pieces>
constexpr int kCount = int(std::extent_v<std::remove_reference_t<Pieces>>);

// The channel of a tensor of C channels that a channel of a walk's plan stands for.
FT_INLINE int64_t unfolded(int64_t channel, int64_t C) { return channel < C ? channel : channel % C; }

// A grid of a block for every part, groups innermost: blocks that run together read neighbouring memory.
template <class Plan>
FT_INLINE int64_t parts(const Plan& plan) {
  return plan.groups * plan.division.chunks;
}

// The part of this block of such a grid. reversed: the last part first, which was read last before.
struct Part {
  int64_t chunk, group;

  template <class Plan>
  __device__ Part(const Plan& p, bool reversed) {
    const int64_t number = reversed ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    chunk = number / p.groups;
    group = number % p.groups;
  }
};

// Chunks for about `blocks` blocks in all, none of them with less than `steps` steps to do.
template <class Plan>
Plan with_blocks(Plan plan, int64_t blocks, int64_t steps) {
  const int64_t useful = ceil_div(plan.items, plan.teams() * steps);
  plan.division = Chunks::make(plan.items, std::max<int64_t>(1, std::min(blocks / plan.groups, useful)));
  return plan;
}

}  // namespace fusedtricks::cuda

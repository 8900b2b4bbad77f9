// How the threads of a block walk over their part of a (N, C, *) tensor: which channels a thread has, which packs it
// visits, and how many elements that makes. RowsWalk is the walk for channels_last tensors, PlanesWalk for the others.
//
// A tensor is divided into groups of neighbouring channels, and along its rows or planes into chunks. A part is what
// one chunk has of one group; a block works on one part at a time. Each thread of a block belongs to a lane, which has
// channels of its own, and to a team, which has one thread of every lane. The teams take the items of the part (rows,
// or packs of a plane) in turn.
#pragma once

#include <algorithm>

#include "core/layout.h"
#include "cuda/device/pack.cuh"

namespace fusedtricks::cuda {

constexpr int kThreads = 256;  // of every block

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Items divided evenly into chunks: the first `longer` chunks have one item more than the others.
struct Chunks {
  int64_t chunks = 1, items_each = 0, longer = 0;

  static Chunks make(int64_t items, int64_t chunks) { return {chunks, items / chunks, items % chunks}; }

  FT_INLINE int64_t start(int64_t chunk) const { return items_each * chunk + (chunk < longer ? chunk : longer); }
};

// A range of the steps of a part. In a step every team takes one item.
struct Steps {
  int64_t first = 0, count = int64_t(1) << 40;
};

// Calls f(pieces) for all pieces of a thread, `unroll` at a time, and then for the cut pack.
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

// The length of an array of pieces, from its type.
template <class Pieces>
constexpr int kCount = int(std::extent_v<std::remove_reference_t<Pieces>>);

// The channel of a tensor of C channels that a channel of a walk's plan stands for.
FT_INLINE int64_t unfolded(int64_t channel, int64_t C) { return channel < C ? channel : channel % C; }

// The number of parts. A grid has one block per part, with the groups of a chunk next to each other, so that blocks
// which run at the same time read neighbouring memory.
template <class Plan>
FT_INLINE int64_t parts(const Plan& plan) {
  return plan.groups * plan.division.chunks;
}

// The part that this block of such a grid works on. reversed: the blocks take the parts in the opposite order,
// beginning with those that the kernel before read last.
struct Part {
  int64_t chunk, group;

  template <class Plan>
  __device__ Part(const Plan& p, bool reversed) {
    const int64_t number = reversed ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    chunk = number / p.groups;
    group = number % p.groups;
  }
};

// The plan divided into chunks for about this many blocks in all, but into fewer where a block would have less than
// `steps` steps to do.
template <class Plan>
Plan with_blocks(Plan plan, int64_t blocks, int64_t steps) {
  const int64_t useful = ceil_div(plan.items, plan.teams() * steps);
  plan.division = Chunks::make(plan.items, std::max<int64_t>(1, std::min(blocks / plan.groups, useful)));
  return plan;
}

}  // namespace fusedtricks::cuda

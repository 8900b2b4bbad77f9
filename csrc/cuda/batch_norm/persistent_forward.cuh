// The forward of batch_norm_act in one kernel, in training.
#pragma once

#include "cuda/batch_norm/packs.cuh"
#include "cuda/batch_norm/persistent_block.cuh"
#include "cuda/batch_norm/statistics.cuh"

namespace fusedtricks::cuda {

// What a block does for a group of channels, one step after the other.
template <class T, class Walk, class Act, bool has_residual>
struct PersistentForward {
  using V = OpMath<T>;
  using Plan = typename Walk::Plan;
  static constexpr int n = Walk::pack, unroll = n < 8 || !has_residual ? 4 : 2;  // as far as the registers allow

  const BatchNormForward& a;
  const Plan& plan;
  const Persistent& persistent;
  const Workspace<V>& space;
  const Act& act;
  Member member;
  Steps kept_steps, other_steps;
  KeptPacks<T, n> kept;
  char* memory;  // scratch memory
  Table<V> table;

  __device__ __forceinline__ PersistentForward(const BatchNormForward& a_, const Plan& plan_,
                                               const Persistent& persistent_, const Workspace<V>& space_,
                                               const Act& act_)
      : a(a_),
        plan(plan_),
        persistent(persistent_),
        space(space_),
        act(act_),
        member(plan_),
        kept_steps{0, persistent_.steps},
        other_steps{persistent_.steps},
        kept(dynamic_shared<char>(), persistent_.steps),
        memory(dynamic_shared<char>() + persistent_.kept_bytes),
        table{reinterpret_cast<V*>(memory + persistent_.scratch_bytes), plan_.block_channels()} {}

  __device__ __forceinline__ const T* x() const { return static_cast<const T*>(a.x); }
  __device__ __forceinline__ Walk kept_walk(int64_t group) const {
    return Walk(plan, member.chunk, group, /*reversed=*/false, kept_steps);
  }

  // Starts to copy the packs that are kept of the first group.
  __device__ __forceinline__ void load_first_group() {
    Walk walk = kept_walk(member.slot);
    for (int step = 0; step < persistent.steps; ++step) {
      Piece<n> piece[1];
      walk.next(piece);
      kept.load(step, x(), piece, plan.numel());
    }
  }

  // Leaves the statistics of the block's part of the group. It begins with the packs that are not kept, because those
  // that are may still be on their way. walk: kept_walk(group).
  __device__ __forceinline__ void leave_statistics(int group, const Walk& walk) {
    Piece<n> pieces[unroll];
    Pack<T, n> packs[unroll];
    Pivot<V> pivots[Walk::channels] = {};
    OwnMoments<V, Walk> moments;
    find_pivots<T>(a, plan, walk, member.chunk, space, memory, pivots);
    for (Walk others(plan, member.chunk, group, /*reversed=*/false, other_steps); others.more();) {
      others.next(pieces);
      load_pieces(x(), pieces, plan.numel(), packs);
      add_moments<T, Walk>(pieces, packs, pivots, moments);
    }
    wait_for_copies();
    Walk again = walk;
    for (int step = 0; again.more(); step += unroll) {
      again.next(pieces);
      kept.get(step, packs);
      add_moments<T, Walk>(pieces, packs, pivots, moments);
    }
    leave_moments(x(), moments, pivots, plan, walk, member.chunk, space, memory);
  }

  template <int count>
  __device__ __forceinline__ void write_pieces(const Piece<n> (&pieces)[count], const Pack<T, n> (&packs)[count],
                                               const Own<V, Walk, kForwardKinds>& own) const {
    Pack<T, n> residuals[count];
    if (has_residual) load_pieces(static_cast<const T*>(a.residual), pieces, plan.numel(), residuals);
#pragma unroll
    for (int u = 0; u < count; ++u) {
      store_piece(static_cast<T*>(a.y), pieces[u], normalized<has_residual, T, Walk>(packs[u], residuals[u], own, act));
    }
  }

  // Writes y of the block's part of the group, and starts to copy the packs of the next one. walk: kept_walk(group).
  __device__ __forceinline__ void write(int group, const Walk& walk) {
    const Own<V, Walk, kForwardKinds> own(table, walk);
    Walk others(plan, member.chunk, group, /*reversed=*/true, other_steps);
    for_pieces<unroll>(others, plan, member.chunk, [&](const auto& pieces) {
      Pack<T, n> packs[kCount<decltype(pieces)>];
      load_pieces(x(), pieces, plan.numel(), packs);
      write_pieces(pieces, packs, own);
    });
    Walk again = walk, next = kept_walk(group + persistent.slots);
    for (int step = 0; step < persistent.steps; step += unroll) {
      Piece<n> pieces[unroll];
      Pack<T, n> packs[unroll];
      again.next(pieces);
      kept.get(step, packs);
      write_pieces(pieces, packs, own);
      next.next(pieces);
      kept.load(step, x(), pieces, plan.numel());
    }
  }
};

// y = act((x - shift) * scale + offset [+ residual]), and everything that a forward records.
template <class T, class Walk, class Act, bool has_residual>
__global__ void __launch_bounds__(kThreads, kBlocks)
    persistent_normalize(BatchNormForward a, typename Walk::Plan plan, Persistent persistent,
                         Workspace<OpMath<T>> space, Act act) {
  PersistentForward<T, Walk, Act, has_residual> block(a, plan, persistent, space, act);
  if (blockIdx.x == 0 && threadIdx.x == 0) a.count_batch();
  block.load_first_group();
  for (int group = block.member.slot; group < plan.groups; group += persistent.slots) {
    const Walk walk = block.kept_walk(group);
    block.leave_statistics(group, walk);
    block.member.meet(plan, persistent, group);
    finish_statistics(a, plan, walk, space, block.member.chunk == 0, block.table, block.memory);
    block.write(group, walk);
  }
}

}  // namespace fusedtricks::cuda

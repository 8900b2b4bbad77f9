// The backward of batch_norm_act in one kernel, in training.
#pragma once

#include "cuda/batch_norm/packs.cuh"
#include "cuda/batch_norm/persistent_block.cuh"

namespace fusedtricks::cuda {

// What a block does for a group of channels, one step after the other.
template <class T, class Walk, class Act, Derivative derivative>
struct PersistentBackward {
  using V = OpMath<T>;
  using Plan = typename Walk::Plan;
  static constexpr bool writes_dz = derivative != Derivative::kAtInput;
  static constexpr int n = Walk::pack, unroll = (n < 8 ? 4 : 2) / (Act::is_fixed ? 1 : 2);

  const BatchNormBackward& a;
  const Plan& plan;
  const Persistent& persistent;
  const Act& act;
  Member member;
  Steps kept_steps, other_steps;
  KeptPacks<T, n> kept_x, kept_gradient;  // the gradient is dy, and dz once that has been computed
  char* memory;                           // scratch memory
  Table<V> table;

  __device__ __forceinline__ PersistentBackward(const BatchNormBackward& a_, const Plan& plan_,
                                                const Persistent& persistent_, const Act& act_)
      : a(a_),
        plan(plan_),
        persistent(persistent_),
        act(act_),
        member(plan_),
        kept_steps{0, persistent_.steps},
        other_steps{persistent_.steps},
        kept_x(dynamic_shared<char>(), persistent_.steps),
        kept_gradient(dynamic_shared<char>() + persistent_.kept_bytes / 2, persistent_.steps),
        memory(dynamic_shared<char>() + persistent_.kept_bytes),
        table{reinterpret_cast<V*>(memory + persistent_.scratch_bytes), plan_.block_channels()} {}

  __device__ __forceinline__ const T* x() const { return static_cast<const T*>(a.x); }
  __device__ __forceinline__ const T* dy() const { return static_cast<const T*>(a.dy); }
  __device__ __forceinline__ T* dz() const { return static_cast<T*>(a.dz); }
  __device__ __forceinline__ Walk kept_walk(int64_t group) const {
    return Walk(plan, member.chunk, group, /*reversed=*/false, kept_steps);
  }

  // Starts to copy the packs that are kept of the first group.
  __device__ __forceinline__ void load_first_group() {
    Walk walk = kept_walk(member.slot);
    for (int step = 0; step < persistent.steps; ++step) {
      Piece<n> piece[1];
      walk.next(piece);
      kept_x.load(step, x(), piece, plan.numel());
      kept_gradient.load(step, dy(), piece, plan.numel());
    }
  }

  // Adds the pieces to the sums. If dz is written, it also takes the place of dy in `gradients`.
  template <int count>
  __device__ __forceinline__ void add_pieces(const Piece<n> (&pieces)[count], const Pack<T, n> (&packs)[count],
                                             Pack<T, n> (&gradients)[count], const Own<V, Walk, kSumKinds>& own,
                                             Sums<V> (&sums)[Walk::channels]) const {
    Pack<T, n> outputs[count];
    if (writes_dz) load_pieces(static_cast<const T*>(a.output), pieces, plan.numel(), outputs);
#pragma unroll
    for (int u = 0; u < count; ++u) {
      const auto result =
          add_gradients<derivative, T, Walk>(pieces[u], packs[u], gradients[u], outputs[u], own, act, sums);
      if (!writes_dz) continue;
      store_piece<Write::kReadNext>(dz(), pieces[u], result);
      gradients[u] = result;
    }
  }

  // Adds up the block's part of the group. It begins with the packs that are not kept, because those that are may still
  // be on their way. walk: kept_walk(group).
  __device__ __forceinline__ void add_part(int group, const Walk& walk, Sums<V> (&sums)[Walk::channels]) {
    const Own<V, Walk, kSumKinds> own(table, walk);
    Walk others(plan, member.chunk, group, /*reversed=*/false, other_steps);
    for_pieces<unroll>(others, plan, member.chunk, [&](const auto& pieces) {
      Pack<T, n> packs[kCount<decltype(pieces)>], gradients[kCount<decltype(pieces)>];
      load_pieces(x(), pieces, plan.numel(), packs);
      load_pieces(dy(), pieces, plan.numel(), gradients);
      add_pieces(pieces, packs, gradients, own, sums);
    });
    wait_for_copies();
    Walk again = walk;
    for (int step = 0; again.more(); step += unroll) {
      Piece<n> pieces[unroll];
      Pack<T, n> packs[unroll], gradients[unroll];
      again.next(pieces);
      kept_x.get(step, packs);
      kept_gradient.get(step, gradients);
      add_pieces(pieces, packs, gradients, own, sums);
      if (writes_dz) kept_gradient.set(step, gradients);
    }
  }

  template <int count>
  __device__ __forceinline__ void write_pieces(const Piece<n> (&pieces)[count], const Pack<T, n> (&packs)[count],
                                               const Pack<T, n> (&gradients)[count],
                                               const Own<V, Walk, kCoefficients>& own) const {
#pragma unroll
    for (int u = 0; u < count; ++u) {
      T* dx = static_cast<T*>(a.dx);
      if constexpr (writes_dz) {
        const FixedActivation<Identity<V>> identity{Identity<V>(nullptr)};
        store_piece(dx, pieces[u], differentiated<T, Walk>(packs[u], gradients[u], own, identity));
      } else {
        store_piece(dx, pieces[u], differentiated<T, Walk>(packs[u], gradients[u], own, act));
      }
    }
  }

  // Writes dx of the block's part of the group, and starts to copy the packs of the next one. walk: kept_walk(group).
  __device__ __forceinline__ void write(int group, const Walk& walk) {
    const Own<V, Walk, kCoefficients> own(table, walk);
    Walk others(plan, member.chunk, group, /*reversed=*/true, other_steps);
    for_pieces<unroll>(others, plan, member.chunk, [&](const auto& pieces) {
      Pack<T, n> packs[kCount<decltype(pieces)>], gradients[kCount<decltype(pieces)>];
      load_pieces(x(), pieces, plan.numel(), packs);
      load_pieces(writes_dz ? static_cast<const T*>(dz()) : dy(), pieces, plan.numel(), gradients);
      write_pieces(pieces, packs, gradients, own);
    });
    Walk again = walk, next = kept_walk(group + persistent.slots);
    for (int step = 0; step < persistent.steps; step += unroll) {
      Piece<n> pieces[unroll];
      Pack<T, n> packs[unroll], gradients[unroll];
      again.next(pieces);
      kept_x.get(step, packs);
      kept_gradient.get(step, gradients);
      write_pieces(pieces, packs, gradients, own);
      next.next(pieces);
      kept_x.load(step, x(), pieces, plan.numel());
      kept_gradient.load(step, dy(), pieces, plan.numel());
    }
  }
};

// dx, dz if the derivative is read off the output, and the gradients of the parameters.
template <class T, class Walk, class Act, Derivative derivative>
__global__ void __launch_bounds__(kThreads, kBlocks)
    persistent_differentiate(BatchNormBackward a, typename Walk::Plan plan, Persistent persistent,
                             Workspace<OpMath<T>> space, Act act) {
  PersistentBackward<T, Walk, Act, derivative> block(a, plan, persistent, act);
  block.load_first_group();
  for (int group = block.member.slot; group < plan.groups; group += persistent.slots) {
    const Walk walk = block.kept_walk(group);
    __syncthreads();  // until all threads have read the table of the group before
    set_forward(a, plan, walk, block.table);
    Sums<OpMath<T>> sums[Walk::channels];
    block.add_part(group, walk, sums);
    leave_sums(sums, plan, walk, block.member.chunk, space, block.memory);
    block.member.meet(plan, persistent, group);
    finish_sums(a, plan, walk, space, block.member.chunk == 0, block.table, block.memory);
    block.write(group, walk);
  }
}

}  // namespace fusedtricks::cuda

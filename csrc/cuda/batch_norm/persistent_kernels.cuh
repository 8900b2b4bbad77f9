// batch_norm_act in one kernel each way, which reads a channel's elements from memory once: it holds them in shared
// memory while their statistics or sums are made. What does not fit is read again, the last of it first.
//
// As many groups of channels as there is room for are held at a time. While the results of one are written, the next is
// loaded to where it was; while a block waits for others, another one of its multiprocessor works.
#pragma once

#include "cuda/batch_norm/persistent_plan.cuh"
#include "cuda/batch_norm/two_kernels.cuh"

namespace fusedtricks::cuda {

template <class T, int n, int count>
__device__ __forceinline__ void load_pieces(const T* tensor, const Piece<n> (&pieces)[count], int64_t numel,
                                            Pack<T, n> (&packs)[count]) {
#pragma unroll
  for (int u = 0; u < count; ++u) packs[u] = load_piece<Read::kAgain>(tensor, pieces[u], numel);
}

// y = act((x - shift) * scale + offset [+ residual]), in training.
template <class T, class Walk, class Act, bool has_residual>
__global__ void __launch_bounds__(kThreads, kBlocks)
    hold_normalize(BatchNormForward a, typename Walk::Plan plan, Hold hold, Workspace<OpMath<T>> space, Act act) {
  using V = OpMath<T>;
  constexpr int n = Walk::pack, unroll = n < 8 || !has_residual ? 4 : 2;  // as far as the registers go
  char* memory = dynamic_shared<char>() + hold.held;
  const Table<V> table{reinterpret_cast<V*>(memory + hold.scratch), plan.block_channels()};
  const Member member(plan);
  const Steps held_steps{0, hold.steps}, other_steps{hold.steps};
  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  Held<T, n> held(dynamic_shared<char>(), hold.steps);
  if (blockIdx.x == 0 && threadIdx.x == 0) a.count_batch();

  Walk first(plan, member.chunk, member.slot, /*reversed=*/false, held_steps);
  for (int step = 0; step < hold.steps; ++step) {
    Piece<n> piece[1];
    first.next(piece);
    held.load(step, x, piece, plan.numel());
  }
  for (int group = member.slot; group < plan.groups; group += hold.slots) {
    const Walk walk(plan, member.chunk, group, false, held_steps);
    Piece<n> pieces[unroll];
    Pack<T, n> packs[unroll];
    Pivot<V> pivots[Walk::channels] = {};
    OwnMoments<V, Walk> moments;
    find_pivots<T>(a, plan, walk, member.chunk, space, memory, pivots);
    for (Walk others(plan, member.chunk, group, false, other_steps); others.more();) {
      others.next(pieces);
      load_pieces(x, pieces, plan.numel(), packs);
      add_moments<T, Walk>(pieces, packs, pivots, moments);
    }
    wait_for_copies();
    Walk again = walk;
    for (int step = 0; again.more(); step += unroll) {
      again.next(pieces);
      held.get(step, packs);
      add_moments<T, Walk>(pieces, packs, pivots, moments);
    }
    leave_moments(x, moments, pivots, plan, walk, member.chunk, space, memory);
    member.meet(plan, hold, group);
    finish_statistics(a, plan, walk, space, member.chunk == 0, table, memory);
    const Own<V, Walk, kForwardKinds> own(table, walk);

    const auto emit = [&](const auto& pieces, const auto& packs) {
      constexpr int count = kCount<decltype(pieces)>;
      Pack<T, n> residuals[count];
      if (has_residual) load_pieces(residual, pieces, plan.numel(), residuals);
#pragma unroll
      for (int u = 0; u < count; ++u) {
        store_piece(y, pieces[u], normalized<has_residual, T, Walk>(packs[u], residuals[u], own, act));
      }
    };
    Walk others(plan, member.chunk, group, /*reversed=*/true, other_steps);
    for_pieces<unroll>(others, plan, member.chunk, [&](const auto& pieces) {
      Pack<T, n> packs[kCount<decltype(pieces)>];
      load_pieces(x, pieces, plan.numel(), packs);
      emit(pieces, packs);
    });
    again = walk;
    Walk next(plan, member.chunk, group + hold.slots, false, held_steps);
    for (int step = 0; step < hold.steps; step += unroll) {
      again.next(pieces);
      held.get(step, packs);
      emit(pieces, packs);
      next.next(pieces);
      held.load(step, x, pieces, plan.numel());
    }
  }
}

// dx, dz after a residual, and the parameters' gradients, in training.
template <class T, class Walk, class Act, Derivative derivative>
__global__ void __launch_bounds__(kThreads, kBlocks)
    hold_differentiate(BatchNormBackward a, typename Walk::Plan plan, Hold hold, Workspace<OpMath<T>> space, Act act) {
  using V = OpMath<T>;
  constexpr bool writes = derivative != Derivative::kAtInput;
  constexpr int n = Walk::pack, unroll = (n < 8 ? 4 : 2) / (Act::is_fixed ? 1 : 2);
  char* memory = dynamic_shared<char>() + hold.held;
  const Table<V> table{reinterpret_cast<V*>(memory + hold.scratch), plan.block_channels()};
  const Member member(plan);
  const Steps held_steps{0, hold.steps}, other_steps{hold.steps};
  const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy), *output = static_cast<const T*>(a.output);
  T *dx = static_cast<T*>(a.dx), *dz = static_cast<T*>(a.dz);
  Held<T, n> held_x(dynamic_shared<char>(), hold.steps);
  Held<T, n> held_gradient(dynamic_shared<char>() + hold.held / 2, hold.steps);

  Walk first(plan, member.chunk, member.slot, /*reversed=*/false, held_steps);
  for (int step = 0; step < hold.steps; ++step) {
    Piece<n> piece[1];
    first.next(piece);
    held_x.load(step, x, piece, plan.numel());
    held_gradient.load(step, dy, piece, plan.numel());
  }
  for (int group = member.slot; group < plan.groups; group += hold.slots) {
    const Walk walk(plan, member.chunk, group, false, held_steps);
    __syncthreads();  // all have read the table of the group before
    set_forward(a, plan, walk, table);

    Piece<n> pieces[unroll];
    Pack<T, n> packs[unroll], gradients[unroll];
    Sums<V> sums[Walk::channels];
    {
      const Own<V, Walk, kSumKinds> own(table, walk);
      // Adds the pieces, and leaves dz in gradients.
      const auto add = [&](const auto& pieces, const auto& packs, auto& gradients) {
        constexpr int count = kCount<decltype(pieces)>;
        Pack<T, n> outputs[count];
        if (writes) load_pieces(output, pieces, plan.numel(), outputs);
#pragma unroll
        for (int u = 0; u < count; ++u) {
          const auto result =
              add_gradients<derivative, T, Walk>(pieces[u], packs[u], gradients[u], outputs[u], own, act, sums);
          if (!writes) continue;
          store_piece<Write::kReadNext>(dz, pieces[u], result);
          gradients[u] = result;
        }
      };
      Walk others(plan, member.chunk, group, false, other_steps);
      for_pieces<unroll>(others, plan, member.chunk, [&](const auto& pieces) {
        Pack<T, n> packs[kCount<decltype(pieces)>], gradients[kCount<decltype(pieces)>];
        load_pieces(x, pieces, plan.numel(), packs);
        load_pieces(dy, pieces, plan.numel(), gradients);
        add(pieces, packs, gradients);
      });
      wait_for_copies();
      Walk again = walk;
      for (int step = 0; again.more(); step += unroll) {
        again.next(pieces);
        held_x.get(step, packs);
        held_gradient.get(step, gradients);
        add(pieces, packs, gradients);
        if (writes) held_gradient.set(step, gradients);
      }
    }
    leave_sums(sums, plan, walk, member.chunk, space, memory);
    member.meet(plan, hold, group);
    finish_sums(a, plan, walk, space, member.chunk == 0, table, memory);

    const Own<V, Walk, kCoefficients> own(table, walk);
    const auto emit = [&](const auto& pieces, const auto& packs, const auto& gradients) {
#pragma unroll
      for (int u = 0; u < kCount<decltype(pieces)>; ++u) {
        if constexpr (writes) {
          const FixedActivation<Identity<V>> identity{Identity<V>(nullptr)};
          store_piece(dx, pieces[u], differentiated<T, Walk>(packs[u], gradients[u], own, identity));
        } else {
          store_piece(dx, pieces[u], differentiated<T, Walk>(packs[u], gradients[u], own, act));
        }
      }
    };
    Walk others(plan, member.chunk, group, /*reversed=*/true, other_steps);
    for_pieces<unroll>(others, plan, member.chunk, [&](const auto& pieces) {
      Pack<T, n> packs[kCount<decltype(pieces)>], gradients[kCount<decltype(pieces)>];
      load_pieces(x, pieces, plan.numel(), packs);
      load_pieces(writes ? static_cast<const T*>(dz) : dy, pieces, plan.numel(), gradients);
      emit(pieces, packs, gradients);
    });
    Walk again = walk, next(plan, member.chunk, group + hold.slots, false, held_steps);
    for (int step = 0; step < hold.steps; step += unroll) {
      again.next(pieces);
      held_x.get(step, packs);
      held_gradient.get(step, gradients);
      emit(pieces, packs, gradients);
      next.next(pieces);
      held_x.load(step, x, pieces, plan.numel());
      held_gradient.load(step, dy, pieces, plan.numel());
    }
  }
}

}  // namespace fusedtricks::cuda

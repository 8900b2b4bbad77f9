// batch_norm_act in one kernel each way, which reads a channel's elements from memory once: it holds them in shared
// memory while their statistics or sums are made. What does not fit is read again, the last of it first.
//
// A group of channels at a time is held, by as many blocks as it takes, its members; as many groups as there is room
// for take their turns side by side. Where blocks share a channel the grid meets once a turn, and has to be launched
// cooperatively.
#pragma once

#include "batch_norm_packs.cuh"
#include "batch_norm_statistics.cuh"

namespace fusedtricks::cuda {

constexpr int kHoldThreads = 512;

// How groups are held; members are the chunks of a walk's plan.
struct Hold {
  int64_t slots, turns;   // groups at once, and how often
  int64_t steps;          // of a part that are held, a pack of each held tensor a step and thread
  int64_t held, scratch;  // bytes of shared memory, in this order; then the table of coefficients
};

// A thread's packs of one tensor in shared memory, those of a step side by side.
template <class T, int n>
struct Held {
  Pack<T, n>* packs;

  __device__ __forceinline__ Pack<T, n>& at(int64_t step) const { return packs[step * kHoldThreads + threadIdx.x]; }
};

// Starts to copy the held steps of a part into shared memory.
template <class T, class Walk>
__device__ __forceinline__ void hold_part(const T* tensor, const typename Walk::Plan& plan, Walk walk, int64_t steps,
                                          const Held<T, Walk::pack>& held) {
  for (int64_t step = 0; step < steps; ++step) {
    Piece<Walk::pack> piece[1];
    walk.next(piece);
    copy_piece_async(&held.at(step), tensor, piece[0], plan.numel());
  }
  commit_copies();
}

// The next held packs; steps beyond the last are empty pieces.
template <int count, class T, int n>
__device__ __forceinline__ void get_held(const Held<T, n>& held, int64_t step, int64_t steps,
                                         Pack<T, n> (&packs)[count]) {
#pragma unroll
  for (int u = 0; u < count; ++u) packs[u] = held.at(step + u < steps ? step + u : step);
}

template <class T, int n, int count>
__device__ __forceinline__ void load_pieces(const T* tensor, const Piece<n> (&pieces)[count], int64_t numel,
                                            Pack<T, n> (&packs)[count]) {
#pragma unroll
  for (int u = 0; u < count; ++u) packs[u] = load_piece<Read::kAgain>(tensor, pieces[u], numel);
}

// Whether a channel has partial results of several blocks: of all members, and of all groups that the channels of a
// fold lie in.
template <class Plan>
FT_INLINE bool is_shared(const Plan& plan) {
  return plan.division.chunks > 1 || (plan.fold > 1 && plan.groups > 1);
}

// Waits until they are all there.
template <class Plan>
__device__ __forceinline__ void meet(const Plan& plan) {
  if (is_shared(plan)) grid_sync();
  __syncthreads();
}

// y = act((x - shift) * scale + offset [+ residual]), in training.
template <class T, class Walk, class Act, bool has_residual>
__global__ void __launch_bounds__(kHoldThreads, 1)
    hold_normalize(BatchNormForward a, typename Walk::Plan plan, Hold hold, Workspace<Compute<T>> space, Act act) {
  using V = Compute<T>;
  constexpr int n = Walk::pack, unroll = n < 8 || !has_residual ? 4 : 2;  // as far as the registers go
  char* memory = dynamic_shared<char>() + hold.held;
  const Held<T, n> held{dynamic_shared<Pack<T, n>>()};
  const Table<V> table{reinterpret_cast<V*>(memory + hold.scratch), plan.block_channels()};
  const int64_t chunk = blockIdx.x / hold.slots;
  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  if (blockIdx.x == 0 && threadIdx.x == 0) a.count_batch();

  for (int64_t turn = 0; turn < hold.turns; ++turn) {
    const int64_t group = blockIdx.x % hold.slots + turn * hold.slots;
    const Steps first_steps{0, hold.steps}, other_steps{hold.steps};
    const Walk walk(plan, chunk, group, /*reversed=*/false, first_steps);
    hold_part<T, Walk>(x, plan, walk, hold.steps, held);

    Piece<n> pieces[unroll];
    Pack<T, n> packs[unroll];
    Pivot<V> pivots[Walk::channels] = {};
    OwnMoments<V, Walk> moments;
    find_pivots<T>(a, plan, walk, chunk, space, memory, pivots);
    for (Walk others(plan, chunk, group, false, other_steps); others.more();) {
      others.next(pieces);
      load_pieces(x, pieces, plan.numel(), packs);
      add_moments<T, Walk>(pieces, packs, pivots, moments);
    }
    wait_for_copies();
    Walk again = walk;
    for (int64_t step = 0; again.more(); step += unroll) {
      again.next(pieces);
      get_held(held, step, hold.steps, packs);
      add_moments<T, Walk>(pieces, packs, pivots, moments);
    }
    leave_moments(x, moments, pivots, plan, walk, chunk, space, memory);
    meet(plan);
    finish_statistics(a, plan, walk, space, chunk == 0, table, memory);
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
    Walk others(plan, chunk, group, /*reversed=*/true, other_steps);
    for_pieces<unroll>(others, plan, chunk, [&](const auto& pieces) {
      Pack<T, n> packs[kCount<decltype(pieces)>];
      load_pieces(x, pieces, plan.numel(), packs);
      emit(pieces, packs);
    });
    again = walk;
    for (int64_t step = 0; again.more(); step += unroll) {
      again.next(pieces);
      get_held(held, step, hold.steps, packs);
      emit(pieces, packs);
    }
  }
}

// dx, dz after a residual, and the parameters' gradients, in training.
template <class T, class Walk, class Act, Derivative derivative>
__global__ void __launch_bounds__(kHoldThreads, 1)
    hold_differentiate(BatchNormBackward a, typename Walk::Plan plan, Hold hold, Workspace<Compute<T>> space, Act act) {
  using V = Compute<T>;
  constexpr bool writes = derivative != Derivative::kAtInput;
  constexpr int n = Walk::pack, unroll = (n < 8 ? 4 : 2) / (Act::is_fixed ? 1 : 2);
  char* memory = dynamic_shared<char>() + hold.held;
  const Held<T, n> held_x{dynamic_shared<Pack<T, n>>()}, held_gradient{held_x.packs + hold.steps * kHoldThreads};
  const Table<V> table{reinterpret_cast<V*>(memory + hold.scratch), plan.block_channels()};
  const int64_t chunk = blockIdx.x / hold.slots;
  const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy), *output = static_cast<const T*>(a.output);
  T *dx = static_cast<T*>(a.dx), *dz = static_cast<T*>(a.dz);

  for (int64_t turn = 0; turn < hold.turns; ++turn) {
    const int64_t group = blockIdx.x % hold.slots + turn * hold.slots;
    const Steps first_steps{0, hold.steps}, other_steps{hold.steps};
    const Walk walk(plan, chunk, group, /*reversed=*/false, first_steps);
    hold_part<T, Walk>(x, plan, walk, hold.steps, held_x);
    hold_part<T, Walk>(dy, plan, walk, hold.steps, held_gradient);
    __syncthreads();  // all have read the table of the turn before
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
      Walk others(plan, chunk, group, false, other_steps);
      for_pieces<unroll>(others, plan, chunk, [&](const auto& pieces) {
        Pack<T, n> packs[kCount<decltype(pieces)>], gradients[kCount<decltype(pieces)>];
        load_pieces(x, pieces, plan.numel(), packs);
        load_pieces(dy, pieces, plan.numel(), gradients);
        add(pieces, packs, gradients);
      });
      wait_for_copies();
      Walk again = walk;
      for (int64_t step = 0; again.more(); step += unroll) {
        again.next(pieces);
        get_held(held_x, step, hold.steps, packs);
        get_held(held_gradient, step, hold.steps, gradients);
        add(pieces, packs, gradients);
#pragma unroll
        for (int u = 0; writes && u < unroll; ++u) {
          if (!pieces[u].empty()) held_gradient.at(step + u) = gradients[u];
        }
      }
    }
    leave_sums(sums, plan, walk, chunk, space, memory);
    meet(plan);
    finish_sums(a, plan, walk, space, chunk == 0, table, memory);

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
    Walk others(plan, chunk, group, /*reversed=*/true, other_steps);
    for_pieces<unroll>(others, plan, chunk, [&](const auto& pieces) {
      Pack<T, n> packs[kCount<decltype(pieces)>], gradients[kCount<decltype(pieces)>];
      load_pieces(x, pieces, plan.numel(), packs);
      load_pieces(writes ? static_cast<const T*>(dz) : dy, pieces, plan.numel(), gradients);
      emit(pieces, packs, gradients);
    });
    Walk again = walk;
    for (int64_t step = 0; again.more(); step += unroll) {
      again.next(pieces);
      get_held(held_x, step, hold.steps, packs);
      get_held(held_gradient, step, hold.steps, gradients);
      emit(pieces, packs, gradients);
    }
  }
}

}  // namespace fusedtricks::cuda

// batch_norm_act in two kernels each way: statistics and normalize; sum_gradients and differentiate. The first kernel
// of a pair leaves partial results of every chunk. Each block of the second merges those of its channels before it
// begins. So there are no counters, no atomic operations and nothing to set to zero, and the results of several devices
// could be merged in between.
#pragma once

#include "cuda/batch_norm/packs.cuh"
#include "cuda/batch_norm/statistics.cuh"

namespace fusedtricks::cuda {

// How many packs of each of `tensors` tensors a thread loads at once: as many as leave enough registers for the sums or
// coefficients of its channels. A multiprocessor then has 32 to 64 KB on their way; an H200 needs 48 to use its full
// bandwidth.
template <class Walk, class Act, class Dropout = NoDropout>
constexpr int packs_at_once(int tensors) {
  const int packs = (Walk::channels <= 4 ? 8 : Act::is_fixed ? 6 : 4) / (Dropout::drops ? 2 : 1);
  return (packs + tensors - 1) / tensors;
}

// Leaves the moments of every channel's scaled deviations from its pivot, in every chunk.
template <class T, class Walk>
__global__ void __launch_bounds__(kThreads, kBlocks)
    statistics(BatchNormForward a, typename Walk::Plan plan, Workspace<OpMath<T>> out) {
  using V = OpMath<T>;
  constexpr int unroll = packs_at_once<Walk, AnyActivation<V>>(1);
  const Part part(plan, /*reversed=*/false);
  Walk walk(plan, part.chunk, part.group, /*reversed=*/false);
  const T* x = static_cast<const T*>(a.x);
  Pivot<V> pivots[Walk::channels] = {};
  OwnMoments<V, Walk> moments;
  find_pivots<T>(a, plan, walk, part.chunk, out, dynamic_shared<char>(), pivots);
  while (walk.more()) {
    Piece<Walk::pack> pieces[unroll];
    Pack<T, Walk::pack> packs[unroll];
    walk.next(pieces);
#pragma unroll
    for (int u = 0; u < unroll; ++u) packs[u] = load_piece<Read::kAgain>(x, pieces[u], plan.numel());
    add_moments<T, Walk>(pieces, packs, pivots, moments);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) a.count_batch();
  leave_moments(x, moments, pivots, plan, walk, part.chunk, out, dynamic_shared<char>());
}

// Records what every channel is to be normalised with, for calls whose second kernel does not. A block for each group
// of channels.
template <class T, class Walk>
__global__ void __launch_bounds__(kThreads, kBlocks)
    record_statistics(BatchNormForward a, typename Walk::Plan plan, Workspace<OpMath<T>> partial) {
  using V = OpMath<T>;
  const Walk walk(plan, /*chunk=*/0, blockIdx.x, /*reversed=*/false);
  const Table<V> table{dynamic_shared<V>(), plan.block_channels()};
  finish_statistics(a, plan, walk, partial, /*records=*/true, table, dynamic_shared<char>());
}

// y = act((x - shift) * scale + offset [+ residual]), with dropout if there is any.
template <class T, class Walk, class Act, bool has_residual, class Dropout>
__global__ void __launch_bounds__(kThreads, kBlocks)
    normalize(BatchNormForward a, typename Walk::Plan plan, Workspace<OpMath<T>> partial, Act act, Dropout dropout) {
  using V = OpMath<T>;
  constexpr int n = Walk::pack, unroll = (has_residual ? 4 : 8) / (Dropout::drops ? 2 : 1);
  const Part part(plan, /*reversed=*/true);
  Walk walk(plan, part.chunk, part.group, /*reversed=*/true);
  const Table<V> table{dynamic_shared<V>(), plan.block_channels()};
  finish_statistics(a, plan, walk, partial, part.chunk == 0, table, dynamic_shared<char>());
  const Own<V, Walk, kForwardKinds> own(table, walk);
  const auto drop = dropout.begin(a);
  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  for_pieces<unroll>(walk, plan, part.chunk, [&](const auto& pieces) {
    constexpr int count = kCount<decltype(pieces)>;
    Pack<T, n> packs[count], residuals[count];
#pragma unroll
    for (int u = 0; u < count; ++u) {
      packs[u] = load_piece<Read::kOnce>(x, pieces[u], plan.numel());
      if (has_residual) residuals[u] = load_piece<Read::kOnce>(residual, pieces[u], plan.numel());
    }
#pragma unroll
    for (int u = 0; u < count; ++u) {
      const auto finish = [&](auto& values) { drop(pieces[u], values); };
      const auto y = normalized<has_residual, T, Walk>(packs[u], residuals[u], own, act, finish);
      store_piece(static_cast<T*>(a.y), pieces[u], y);
    }
  });
}

// Leaves the sums of dz and of dz * (x - shift) * rstd in every chunk. If the derivative is not taken from the input
// alone, it also writes dz.
template <class T, class Walk, class Act, Derivative derivative, class Dropout>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sum_gradients(BatchNormBackward a, typename Walk::Plan plan, Workspace<OpMath<T>> out, Act act, Dropout dropout) {
  using V = OpMath<T>;
  constexpr bool writes = derivative != Derivative::kAtInput;
  constexpr int tensors = !writes ? 2 : derivative == Derivative::kOfOutput ? 3 : 4;
  constexpr int n = Walk::pack, unroll = packs_at_once<Walk, Act, Dropout>(tensors);
  const Part part(plan, /*reversed=*/false);
  Walk walk(plan, part.chunk, part.group, /*reversed=*/false);
  const Table<V> table{dynamic_shared<V>(), plan.block_channels()};
  set_forward(a, plan, walk, table);
  const Own<V, Walk, kSumKinds> own(table, walk);
  __syncthreads();  // leave_sums uses the table's memory
  const auto drop = dropout.begin(a);
  const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy);
  const T* other = static_cast<const T*>(derivative == Derivative::kOfOutput ? a.output : a.residual);
  Sums<V> sums[Walk::channels];
  for_pieces<unroll>(walk, plan, part.chunk, [&](const auto& pieces) {
    constexpr int count = kCount<decltype(pieces)>;
    Pack<T, n> packs[count], gradients[count], others[count];
#pragma unroll
    for (int u = 0; u < count; ++u) {
      packs[u] = load_piece<Read::kAgain>(x, pieces[u], plan.numel());
      gradients[u] = load_piece<writes ? Read::kOnce : Read::kAgain>(dy, pieces[u], plan.numel());
      if (writes) others[u] = load_piece<Read::kOnce>(other, pieces[u], plan.numel());
    }
#pragma unroll
    for (int u = 0; u < count; ++u) {
      const auto prepare = [&](auto& values) { drop(pieces[u], values); };
      const auto dz =
          add_gradients<derivative, T, Walk>(pieces[u], packs[u], gradients[u], others[u], own, act, sums, prepare);
      if (writes) store_piece<Write::kReadNext>(static_cast<T*>(a.dz), pieces[u], dz);
    }
  });
  leave_sums(sums, plan, walk, part.chunk, out, dynamic_shared<char>());
}

// Writes dx, if it is wanted, and the gradients of the parameters. If sum_gradients has written dz, it starts from
// that, with the identity for the activation and without dropout.
template <class T, class Walk, class Act, class Dropout>
__global__ void __launch_bounds__(kThreads, kBlocks)
    differentiate(BatchNormBackward a, typename Walk::Plan plan, Workspace<OpMath<T>> partial, Act act,
                  Dropout dropout) {
  using V = OpMath<T>;
  constexpr int n = Walk::pack, unroll = packs_at_once<Walk, Act, Dropout>(2);
  const Part part(plan, /*reversed=*/true);
  Walk walk(plan, part.chunk, part.group, /*reversed=*/true);
  char* memory = dynamic_shared<char>();
  const Table<V> table{reinterpret_cast<V*>(memory + total_bytes(plan)), plan.block_channels()};
  set_forward(a, plan, walk, table);
  finish_sums(a, plan, walk, partial, part.chunk == 0, table, memory);
  if (!a.dx) return;
  const Own<V, Walk, kCoefficients> own(table, walk);
  const auto drop = dropout.begin(a);
  const T *x = static_cast<const T*>(a.x), *gradient = static_cast<const T*>(a.after_residual() ? a.dz : a.dy);
  for_pieces<unroll>(walk, plan, part.chunk, [&](const auto& pieces) {
    constexpr int count = kCount<decltype(pieces)>;
    Pack<T, n> packs[count], gradients[count];
#pragma unroll
    for (int u = 0; u < count; ++u) {
      packs[u] = load_piece<Read::kOnce>(x, pieces[u], plan.numel());
      gradients[u] = load_piece<Read::kOnce>(gradient, pieces[u], plan.numel());
    }
#pragma unroll
    for (int u = 0; u < count; ++u) {
      const auto prepare = [&](auto& values) { drop(pieces[u], values); };
      store_piece(static_cast<T*>(a.dx), pieces[u], differentiated<T, Walk>(packs[u], gradients[u], own, act, prepare));
    }
  });
}

}  // namespace fusedtricks::cuda

// batch_norm_act_max_pool2d once the statistics are known. The forward finds the maxima. The backward adds up the
// outputs, computes what every channel needs of these sums, and then dx: every element looks at the windows that it
// lies in, so no atomic operations are needed.
#pragma once

#include "calls/batch_norm_pool.h"
#include "cuda/batch_norm/two_kernels.cuh"
#include "cuda/batch_norm_pool/maxima.cuh"

namespace fusedtricks::cuda {

constexpr int kColumnsAtOnce = 3;  // places in a row of a window that are loaded together

// The window of an output: for a pack of channels, or for one element of a plane.
template <class T, int n>
struct Window {
  const MaxPool& pool;
  Position at;
  const T* first;  // first element of the image, at the channel
  int64_t step;

  __device__ __forceinline__ Window(const T* x, const MaxPool& pool_, const Layout& layout, int64_t output)
      : pool(pool_), at(output, layout.channels_last, layout.channels, pool_.height.outputs, pool_.width.outputs) {
    step = layout.channels_last ? layout.channels : 1;
    first = x + at.image * layout.positions * step + at.channel;
  }
  __device__ __forceinline__ const T* element(int64_t r, int64_t c) const {
    const int64_t row = pool.height.start(at.row) + r * pool.height.dilation;
    const int64_t column = pool.width.start(at.column) + c * pool.width.dilation;
    return first + (row * pool.width.size + column) * step;
  }
  __device__ __forceinline__ const T* element(int place) const {
    const int r = place / int(pool.width.kernel);
    return element(r, place - r * int(pool.width.kernel));
  }
  // Calls f(packs, place of the first, how many) for the packs of the window in order.
  template <class F>
  __device__ __forceinline__ void for_packs(const F& f) const {
    const int64_t end_row = pool.height.end_place(at.row), end = pool.width.end_place(at.column);
    for (int64_t r = pool.height.first_place(at.row); r < end_row; ++r) {
      for (int64_t c = pool.width.first_place(at.column); c < end; c += kColumnsAtOnce) {
        Pack<T, n> packs[kColumnsAtOnce];
        const int count = end - c < kColumnsAtOnce ? int(end - c) : kColumnsAtOnce;
#pragma unroll
        for (int i = 0; i < kColumnsAtOnce; ++i) {
          if (i < count) packs[i] = *reinterpret_cast<const Pack<T, n>*>(element(r, c + i));
        }
        f(packs, int(r * pool.width.kernel + c), count);
      }
    }
  }
};

// The maximum of a window is the first of its largest activated values, or the last NaN if there is any, as in stock.
template <class T, class Walk, class Act>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pool_maxima(BatchNormPoolForward a, typename Walk::Plan plan, Act act) {
  using V = OpMath<T>;
  constexpr int n = Walk::pack;
  const Part part(plan, /*reversed=*/true);
  Walk walk(plan, part.chunk, part.group, /*reversed=*/true);
  const Table<V> table{dynamic_shared<V>(), plan.block_channels()};
  set_forward(a.norm, plan, walk, table);
  const Own<V, Walk, kForwardKinds> own(table, walk);
  for_pieces<1>(walk, plan, part.chunk, [&](const auto& pieces) {
    const Window<T, n> window(static_cast<const T*>(a.norm.x), a.pool, a.norm.layout, pieces[0].index);
    V most[n];
    Pack<uint8_t, n> places;
    bool found = false;
    window.for_packs([&](const Pack<T, n>(&packs)[kColumnsAtOnce], int place, int count) {
#pragma unroll
      for (int i = 0; i < kColumnsAtOnce; ++i) {
        if (i >= count) continue;
        V z[n];
        unpack(packs[i], z);
#pragma unroll
        for (int e = 0; e < n; ++e) z[e] = (z[e] - own.get(kShift, e)) * own.get(kScale, e) + own.get(kOffset, e);
        activate(act, z);
#pragma unroll
        for (int e = 0; e < n; ++e) {
          if (found && !(z[e] > most[e]) && z[e] == z[e]) continue;
          most[e] = z[e];
          places.value[e] = uint8_t(place + i);
        }
        found = true;
      }
    });
    store_piece(static_cast<T*>(a.y), pieces[0], rounded_pack<T>(most));
    store_piece(a.argmax, pieces[0], places);
  });
}

// Leaves the sums of dz and of dz * (x - shift) * rstd over the outputs of every chunk, with x at the maxima.
template <class T, class Walk, class Act>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pool_sums(BatchNormPoolBackward a, typename Walk::Plan plan, Workspace<OpMath<T>> out, Act act) {
  using V = OpMath<T>;
  constexpr int n = Walk::pack, unroll = 2;
  const Part part(plan, /*reversed=*/false);
  Walk walk(plan, part.chunk, part.group, /*reversed=*/false);
  const Table<V> table{dynamic_shared<V>(), plan.block_channels()};
  set_forward(a.norm, plan, walk, table);
  const Own<V, Walk, kSumKinds> own(table, walk);
  __syncthreads();  // leave_sums uses the table's memory
  const T *x = static_cast<const T*>(a.norm.x), *dy = static_cast<const T*>(a.dy);
  Sums<V> sums[Walk::channels];
  for_pieces<unroll>(walk, plan, part.chunk, [&](const auto& pieces) {
    constexpr int count = kCount<decltype(pieces)>;
    Pack<T, n> packs[count], gradients[count];
#pragma unroll
    for (int u = 0; u < count; ++u) {
      gradients[u] = load_piece<Read::kAgain>(dy, pieces[u], plan.numel());
      const auto places = load_piece<Read::kAgain>(a.argmax, pieces[u], plan.numel());
      const Window<T, n> window(x, a.pool, a.norm.layout, pieces[u].empty() ? 0 : pieces[u].index);
#pragma unroll
      for (int e = 0; e < n; ++e) {
        packs[u].value[e] = pieces[u].has(e) ? window.element(places.value[e])[e] : T(0);
      }
    }
#pragma unroll
    for (int u = 0; u < count; ++u) {
      add_gradients<Derivative::kAtInput, T, Walk>(pieces[u], packs[u], gradients[u], gradients[u], own, act, sums);
    }
  });
  leave_sums(sums, plan, walk, part.chunk, out, dynamic_shared<char>());
}

// Writes the gradients of the parameters, and slope and constant of every channel, as one array each: the outputs that
// were added up are divided into other parts than the elements that need these two. A block for each group of channels.
template <class T, class Walk>
__global__ void __launch_bounds__(kThreads, kBlocks) finish_pool_sums(BatchNormPoolBackward a, typename Walk::Plan plan,
                                                                      Workspace<OpMath<T>> partial, OpMath<T>* slopes) {
  using V = OpMath<T>;
  const Walk walk(plan, /*chunk=*/0, blockIdx.x, /*reversed=*/false);
  char* memory = dynamic_shared<char>();
  const Table<V> table{reinterpret_cast<V*>(memory + total_bytes(plan)), plan.block_channels()};
  set_forward(a.norm, plan, walk, table);
  finish_sums(a.norm, plan, walk, partial, /*records=*/true, table, memory);
  const int64_t channel = walk.block_channel + threadIdx.x;
  if (int(threadIdx.x) >= plan.block_channels() || channel >= plan.channels) return;
  slopes[channel] = table.at(kSlope, threadIdx.x);
  slopes[a.norm.layout.channels + channel] = table.at(kConstant, threadIdx.x);
}

// For each element of a pack the sum of dy over the outputs whose maximum it is. channels: the pack is of the channels
// of one position.
template <bool channels, class T, int n>
__device__ __forceinline__ void add_outputs(const BatchNormPoolBackward& a, const Piece<n>& piece,
                                            OpMath<T> (&sums)[n]) {
  const Layout& layout = a.norm.layout;
  const int64_t C = layout.channels, H = a.pool.height.size, W = a.pool.width.size;
  const int64_t step = layout.channels_last ? C : 1, image = a.pool.outputs() * step;
  const T* dy = static_cast<const T*>(a.dy);
  // The pack can begin before its plane does.
  Position at(piece.index + piece.first, layout.channels_last, C, H, W);
#pragma unroll
  for (int e = 0; e < n; ++e) sums[e] = OpMath<T>(0);
  if constexpr (channels) {
    const int64_t first = at.image * image + at.channel;
    for_windows(a.pool, at, [&](int64_t output, int place) {
      const auto places = *reinterpret_cast<const Pack<uint8_t, n>*>(a.argmax + first + output * step);
      const auto gradients = *reinterpret_cast<const Pack<T, n>*>(dy + first + output * step);
#pragma unroll
      for (int e = 0; e < n; ++e) sums[e] += places.value[e] == place ? load(gradients.value[e]) : OpMath<T>(0);
    });
  } else {
#pragma unroll
    for (int e = 0; e < n; ++e) {
      if (!piece.has(e)) continue;
      const int64_t first = at.image * image + at.channel;
      for_windows(a.pool, at, [&](int64_t output, int place) {
        if (a.argmax[first + output * step] == place) sums[e] += load(dy[first + output * step]);
      });
      at.advance(layout.channels_last, C, H, W);
    }
  }
}

// Writes dx. channels: as in add_outputs.
template <class T, class Walk, class Act, bool channels>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pool_differentiate(BatchNormPoolBackward a, typename Walk::Plan plan, const OpMath<T>* slopes, Act act) {
  using V = OpMath<T>;
  constexpr int n = Walk::pack;
  const Part part(plan, /*reversed=*/true);
  Walk walk(plan, part.chunk, part.group, /*reversed=*/true);
  const Table<V> table{dynamic_shared<V>(), plan.block_channels()};
  const int64_t number = walk.block_channel + threadIdx.x, C = a.norm.layout.channels;
  if (int(threadIdx.x) < plan.block_channels() && number < plan.channels) {
    table.at(kSlope, threadIdx.x) = slopes[unfolded(number, C)];
    table.at(kConstant, threadIdx.x) = slopes[C + unfolded(number, C)];
  }
  set_forward(a.norm, plan, walk, table);
  const Own<V, Walk, kCoefficients> own(table, walk);
  for_pieces<1>(walk, plan, part.chunk, [&](const auto& pieces) {
    const auto pack = load_piece<Read::kOnce>(static_cast<const T*>(a.norm.x), pieces[0], plan.numel());
    V dz[n];
    add_outputs<channels, T>(a, pieces[0], dz);
    store_piece(static_cast<T*>(a.norm.dx), pieces[0], differentiated<T, Walk>(pack, dz, own, act));
  });
}

}  // namespace fusedtricks::cuda

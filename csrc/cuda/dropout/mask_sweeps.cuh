// Elementwise kernels that know of each element whether the mask keeps it: the words of a pack are computed while it is
// on its way. What becomes of the packs is an operation,
//   struct Operation {
//     template <int n> struct Packs;                                    what is loaded of n neighbouring elements
//     template <int n> Packs<n> load(const Piece<n>&) const;
//     template <int n> void store(const Piece<n>&, const Packs<n>&, const bool (&keep)[n]) const;
//   };
#pragma once

#include "cuda/device/flat.cuh"
#include "cuda/dropout/mask.cuh"

namespace fusedtricks::cuda {

// Blocks that a multiprocessor has room for: left to choose, the compiler spills registers to fit one more.
constexpr int kMaskedBlocks = 2;

// Which elements of a pack that begins at a logical index, a multiple of n, are kept.
template <int n>
__device__ __forceinline__ void draw_in_order(const Mask& mask, uint64_t index, bool (&keep)[n]) {
  constexpr int run = std::min(n, 4);  // elements of a pack that have one block
#pragma unroll
  for (int first = 0; first < n; first += run) {
    const uint64_t i = index + first;
    const PhiloxBlock block = philox_block(mask.seed, mask.offset, i / 4);
#pragma unroll
    for (int e = 0; e < run; ++e) keep[first + e] = mask.keeps(word_at(block, run == 4 ? e : int(i % 4) + e));
  }
}

template <int n>
__device__ __forceinline__ void keep_all(bool (&keep)[n]) {
#pragma unroll
  for (int e = 0; e < n; ++e) keep[e] = true;
}

// In logical order: element i takes word i % 4 of block i / 4.
template <class T, int n, class Operation>
__global__ void __launch_bounds__(kThreads) mask_in_order(int64_t count, MaskSource source, Operation operation) {
  const Mask mask = source.get();
  Piece<n> pieces[kFlatUnroll];
  typename Operation::template Packs<n> packs[kFlatUnroll];
  flat_pieces(count, pieces);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) packs[u] = operation.load(pieces[u]);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    bool keep[n];
    if (source.is_drawn())
      draw_in_order(mask, uint64_t(pieces[u].index), keep);
    else
      keep_all(keep);
    operation.store(pieces[u], packs[u], keep);
  }
}

// Rows: logical index (sample * C + channel) * S + position. A thread has n channels at kPositions positions, and
// computes a block of words of each channel for every four.
constexpr int kPositions = 16;

template <class T, int n, class Operation>
__global__ void __launch_bounds__(kThreads, kMaskedBlocks)
    mask_rows(Layout layout, MaskSource source, Operation operation) {
  constexpr int run = 4;
  const Mask mask = source.get();
  const int64_t C = layout.channels, S = layout.positions, packs = C / n, spans = (S + kPositions - 1) / kPositions;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= layout.samples * spans * packs) return;
  const int64_t channel = item % packs * n, sample = item / packs / spans, first = item / packs % spans * kPositions;
  const int count = int(S - first < kPositions ? S - first : kPositions);

  uint64_t counters[n];
  uint32_t bits[n];  // bit w: whether what has word w of the channel's block is kept
  const auto draw = [&] {
    uint32_t words[n][4];
    philox_blocks(mask.seed, mask.offset, counters, words);
#pragma unroll
    for (int c = 0; c < n; ++c) {
      bits[c] = 0;
#pragma unroll
      for (int w = 0; w < 4; ++w) bits[c] |= uint32_t(mask.keeps(words[c][w])) << w;
    }
  };
  int lacking[n];         // how many of a run's words lie in the block before
  uint32_t rest[n] = {};  // bits of those
#pragma unroll
  for (int c = 0; c < n; ++c) {
    const uint64_t index = uint64_t((sample * C + channel + c) * S + first);
    lacking[c] = int(-index % 4);
    counters[c] = index / 4;
  }
  if (S % 4) {
    draw();
#pragma unroll
    for (int c = 0; c < n; ++c) {
      rest[c] = bits[c] >> (4 - lacking[c]);
      counters[c] += lacking[c] > 0;
    }
  }
  int64_t at = (sample * S + first) * C + channel;
  for (int p = 0; p < count; p += run) {
    Piece<n> pieces[run];
    typename Operation::template Packs<n> packs_there[run];
#pragma unroll
    for (int u = 0; u < run; ++u) {
      pieces[u] = {at + u * C, 0, p + u < count ? n : 0};
      packs_there[u] = operation.load(pieces[u]);
    }
    draw();
    bool keep[run][n];
#pragma unroll
    for (int c = 0; c < n; ++c) {
      const uint32_t keeps = rest[c] | bits[c] << lacking[c];
      rest[c] = bits[c] >> (4 - lacking[c]);
      ++counters[c];
#pragma unroll
      for (int u = 0; u < run; ++u) keep[u][c] = keeps >> u & 1;
    }
#pragma unroll
    for (int u = 0; u < run; ++u) operation.store(pieces[u], packs_there[u], keep[u]);
    at += run * C;
  }
}

template <class T, int n, class Operation>
void launch_in_order(int64_t numel, const MaskSource& source, const Operation& operation) {
  launch(mask_in_order<T, n, Operation>, flat_blocks(numel, n), kThreads, 0, numel, source, operation);
}

// By packs of n elements, or of as many fewer as a row is whole packs of.
template <class T, int n, class Operation>
void launch_rows(const Layout& layout, const MaskSource& source, const Operation& operation) {
  if constexpr (n > 1) {
    if (layout.channels % n) return launch_rows<T, n / 2>(layout, source, operation);
  }
  const int64_t items = layout.samples * ceil_div(layout.positions, kPositions) * (layout.channels / n);
  launch(mask_rows<T, n, Operation>, std::max<int64_t>(1, ceil_div(items, kThreads)), kThreads, 0, layout, source,
         operation);
}

// aligned: every tensor begins at a multiple of a pack.
template <class T, class Operation>
void launch_masked(const Layout& layout, bool in_logical_order, bool aligned, const MaskSource& source,
                   const Operation& operation) {
  const int64_t numel = layout.samples * layout.channels * layout.positions;
  if (in_logical_order)
    aligned ? launch_in_order<T, kPack<T>>(numel, source, operation) : launch_in_order<T, 1>(numel, source, operation);
  else
    aligned ? launch_rows<T, kPack<T>>(layout, source, operation) : launch_rows<T, 1>(layout, source, operation);
}

}  // namespace fusedtricks::cuda

// Elementwise kernels that know for each element whether the mask keeps it. They compute the words of a pack while the
// pack is still being loaded. What happens to the packs is up to an operation:
//   struct Operation {
//     template <int n> struct Packs;                          what is loaded for n neighbouring elements
//     template <int n> Packs<n> load(const Piece<n>&) const;
//     template <int n> void store(const Piece<n>&, const Packs<n>&, const bool (&keep)[n]) const;
//   };
#pragma once

#include "cuda/device/flat.cuh"
#include "cuda/dropout/mask.cuh"

namespace fusedtricks::cuda {

// Blocks that a multiprocessor must have registers for. Without this bound the compiler aims at one block more and
// spills registers.
constexpr int kMaskedBlocks = 2;

// For tensors whose memory is in logical order: element i has word i % 4 of block i / 4.
template <class T, int n, class Operation>
__global__ void __launch_bounds__(kThreads) mask_in_order(int64_t count, MaskSource source, Operation operation) {
  const Mask mask = read_mask(source);
  Piece<n> pieces[kFlatUnroll];
  typename Operation::template Packs<n> packs[kFlatUnroll];
  flat_pieces(count, pieces);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) packs[u] = operation.load(pieces[u]);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    bool keep[n];
    if (source) {
      for_kept_in_order<n>(mask, uint64_t(pieces[u].index), [&](int e, bool keeps) { keep[e] = keeps; });
    } else {
#pragma unroll
      for (int e = 0; e < n; ++e) keep[e] = true;
    }
    operation.store(pieces[u], packs[u], keep);
  }
}

constexpr int kRun = 4;         // words of a block, and so positions that a block decides about
constexpr int kPositions = 16;  // that a thread of mask_rows handles

// What the mask says about n channels of a channels_last tensor, kRun positions at a time. The logical index of an
// element is (sample * C + channel) * S + position, so the positions of a channel have neighbouring words. A run of
// positions can begin in the middle of a block; then `rest` holds what the block before said about its beginning.
template <int n>
class ChannelRuns {
 public:
  // index(c): the logical index of channel c at the first position.
  template <class Index>
  __device__ __forceinline__ ChannelRuns(const Mask& mask, bool may_begin_within_blocks, const Index& index)
      : mask_(mask) {
#pragma unroll
    for (int c = 0; c < n; ++c) {
      const uint64_t i = index(c);
      lacking_[c] = int(-i % kRun);
      counters_[c] = i / kRun;
    }
    if (!may_begin_within_blocks) return;
    draw();
#pragma unroll
    for (int c = 0; c < n; ++c) {
      rest_[c] = bits_[c] >> (kRun - lacking_[c]);
      counters_[c] += lacking_[c] > 0;
    }
  }

  // Whether the mask keeps each channel at each of the next kRun positions.
  __device__ __forceinline__ void next(bool (&keep)[kRun][n]) {
    draw();
#pragma unroll
    for (int c = 0; c < n; ++c) {
      const uint32_t keeps = rest_[c] | bits_[c] << lacking_[c];
      rest_[c] = bits_[c] >> (kRun - lacking_[c]);
      ++counters_[c];
#pragma unroll
      for (int u = 0; u < kRun; ++u) keep[u][c] = keeps >> u & 1;
    }
  }

 private:
  // Computes the block of every channel.
  __device__ __forceinline__ void draw() {
    uint32_t words[n][kRun];
    philox_blocks(mask_.seed, mask_.offset, counters_, words);
#pragma unroll
    for (int c = 0; c < n; ++c) {
      bits_[c] = 0;
#pragma unroll
      for (int w = 0; w < kRun; ++w) bits_[c] |= uint32_t(mask_.keeps(words[c][w])) << w;
    }
  }

  const Mask mask_;
  uint64_t counters_[n];   // of the next blocks
  uint32_t bits_[n];       // bit w: whether word w of the channel's block keeps its element
  int lacking_[n];         // how many words of a run lie in the block before
  uint32_t rest_[n] = {};  // their bits
};

// For channels_last tensors. A thread has n channels at kPositions positions of a sample.
template <class T, int n, class Operation>
__global__ void __launch_bounds__(kThreads, kMaskedBlocks)
    mask_rows(Layout layout, MaskSource source, Operation operation) {
  const Mask mask = read_mask(source);
  const int64_t C = layout.channels, S = layout.positions, packs = C / n, spans = (S + kPositions - 1) / kPositions;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= layout.samples * spans * packs) return;
  const int64_t channel = item % packs * n, sample = item / packs / spans, first = item / packs % spans * kPositions;
  const int count = int(S - first < kPositions ? S - first : kPositions);
  ChannelRuns<n> runs(mask, S % kRun, [&](int c) { return uint64_t((sample * C + channel + c) * S + first); });
  int64_t at = (sample * S + first) * C + channel;
  for (int p = 0; p < count; p += kRun) {
    Piece<n> pieces[kRun];
    typename Operation::template Packs<n> loaded[kRun];
#pragma unroll
    for (int u = 0; u < kRun; ++u) {
      pieces[u] = {at + u * C, 0, p + u < count ? n : 0};
      loaded[u] = operation.load(pieces[u]);
    }
    bool keep[kRun][n];
    runs.next(keep);
#pragma unroll
    for (int u = 0; u < kRun; ++u) operation.store(pieces[u], loaded[u], keep[u]);
    at += kRun * C;
  }
}

template <class T, int n, class Operation>
void launch_in_order(int64_t numel, const MaskSource& source, const Operation& operation) {
  launch(mask_in_order<T, n, Operation>, flat_blocks(numel, n), kThreads, 0, numel, source, operation);
}

// By packs of n elements, or of the largest fraction of n that divides the number of channels.
template <class T, int n, class Operation>
void launch_rows(const Layout& layout, const MaskSource& source, const Operation& operation) {
  if constexpr (n > 1) {
    if (layout.channels % n) return launch_rows<T, n / 2>(layout, source, operation);
  }
  const int64_t items = layout.samples * ceil_div(layout.positions, kPositions) * (layout.channels / n);
  launch(mask_rows<T, n, Operation>, std::max<int64_t>(1, ceil_div(items, kThreads)), kThreads, 0, layout, source,
         operation);
}

// in_logical_order: the elements lie in memory in the order in which their words are counted. aligned: every tensor of
// the operation begins at a multiple of a pack.
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

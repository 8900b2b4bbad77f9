// Dropout: y = x * mask * scale in one pass, the mask computed from (seed, offset, logical index) wherever it is
// needed. The backward is the same pass over dy.
#include "../dropout.h"

#include "../dtypes.h"
#include "flat.cuh"
#include "mask.cuh"

namespace fusedtricks::cuda {
namespace {

// In logical order: element i takes word i % 4 of block i / 4.
template <class T, int n>
__global__ void __launch_bounds__(kThreads)
    drop_in_order(const T* x, T* y, int64_t count, MaskSource source, Compute<T> scale) {
  constexpr int run = std::min(n, 4);  // elements of a pack that have one block
  const Mask mask = source.get();
  Piece<n> pieces[kFlatUnroll];
  Pack<T, n> packs[kFlatUnroll];
  flat_pieces(count, pieces);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) packs[u] = load_piece<Read::kOnce>(x, pieces[u], count);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
#pragma unroll
    for (int first = 0; first < n; first += run) {
      const uint64_t i = uint64_t(pieces[u].index + first);
      const PhiloxBlock block = philox_block(mask.seed, mask.offset, i / 4);
#pragma unroll
      for (int e = 0; e < run; ++e) {
        T& value = packs[u].value[first + e];
        value = dropped(value, scale, mask.keeps(word_at(block, run == 4 ? e : int(i % 4) + e)));
      }
    }
    store_piece(y, pieces[u], packs[u]);
  }
}

// Rows: logical index (sample * C + channel) * S + position. A thread has n channels at kPositions positions, and
// computes a block of words of each channel for every four.
constexpr int kPositions = 16;

template <class T, int n>
__global__ void __launch_bounds__(kThreads)
    drop_rows(const T* x, T* y, Layout layout, MaskSource source, Compute<T> scale) {
  constexpr int run = 4;
  const Mask mask = source.get();
  const int64_t C = layout.channels, S = layout.positions, packs = C / n, spans = (S + kPositions - 1) / kPositions;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= layout.samples * spans * packs) return;
  const int64_t channel = item % packs * n, sample = item / packs / spans, first = item / packs % spans * kPositions;
  const int64_t numel = layout.samples * C * S;
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
    Pack<T, n> packs_there[run];
#pragma unroll
    for (int u = 0; u < run; ++u) {
      pieces[u] = {at + u * C, 0, p + u < count ? n : 0};
      packs_there[u] = load_piece<Read::kOnce>(x, pieces[u], numel);
    }
    draw();
#pragma unroll
    for (int c = 0; c < n; ++c) {
      const uint32_t keeps = rest[c] | bits[c] << lacking[c];
      rest[c] = bits[c] >> (4 - lacking[c]);
      ++counters[c];
#pragma unroll
      for (int u = 0; u < run; ++u) {
        T& value = packs_there[u].value[c];
        value = dropped(value, scale, keeps >> u & 1);
      }
    }
#pragma unroll
    for (int u = 0; u < run; ++u) store_piece(y, pieces[u], packs_there[u]);
    at += run * C;
  }
}

template <class T, int n>
void launch_in_order(const DropoutCall& call, const MaskSource& source) {
  launch(drop_in_order<T, n>, flat_blocks(call.numel(), n), kThreads, 0, static_cast<const T*>(call.x),
         static_cast<T*>(call.y), call.numel(), source, Compute<T>(call.rate.scale));
}

// By packs of n elements, or of as many fewer as a row is whole packs of.
template <class T, int n>
void launch_rows(const DropoutCall& call, const MaskSource& source) {
  const Layout& layout = call.layout;
  if constexpr (n > 1) {
    if (layout.channels % n) return launch_rows<T, n / 2>(call, source);
  }
  const int64_t items = layout.samples * ceil_div(layout.positions, kPositions) * (layout.channels / n);
  launch(drop_rows<T, n>, std::max<int64_t>(1, ceil_div(items, kThreads)), kThreads, 0, static_cast<const T*>(call.x),
         static_cast<T*>(call.y), layout, source, Compute<T>(call.rate.scale));
}

template <class T, int n>
void launch_dropout(const DropoutCall& call, const MaskSource& source) {
  if (call.in_logical_order) return launch_in_order<T, n>(call, source);
  launch_rows<T, n>(call, source);
}

void drop(const DropoutCall& call, const MaskSource& source) {
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (is_pack_aligned(call.x) && is_pack_aligned(call.y))
      launch_dropout<T, kPack<T>>(call, source);
    else
      launch_dropout<T, 1>(call, source);
  });
}

}  // namespace
}  // namespace fusedtricks::cuda

namespace fusedtricks::backend {

void dropout_forward(const DropoutCall& call, std::optional<int64_t> seed, int64_t* rng_state) {
  const auto source = seed ? cuda::RandomSource{uint64_t(*seed), 0} : cuda::draw_random_source();
  cuda::drop(call, {source, nullptr, rng_state, uint32_t(call.rate.threshold), call.rate.drops_all()});
}

void dropout_backward(const DropoutCall& call, const int64_t* rng_state) {
  if (call.numel()) cuda::drop(call, {{}, rng_state, nullptr, uint32_t(call.rate.threshold), call.rate.drops_all()});
}

}  // namespace fusedtricks::backend

// Dropout: y = x * mask * scale in one pass, the mask computed from (seed, offset, logical index) wherever it is
// needed. The backward is the same pass over dy.
#include "../dropout.h"

#include "../dtypes.h"
#include "flat.cuh"
#include "random.h"

namespace fusedtricks::cuda {
namespace {

struct Mask {
  uint64_t seed, offset;
  uint32_t threshold;
  bool drops_all;  // whatever the threshold says

  FT_INLINE bool keeps(uint32_t word) const { return word >= threshold && !drops_all; }
};

// A forward draws its mask and has one thread record it; a backward reads what was recorded.
struct MaskSource {
  RandomSource source;
  const int64_t* recorded;
  int64_t* record;
  uint32_t threshold;
  bool drops_all;

  __device__ __forceinline__ Mask get() const {
    if (recorded) return {uint64_t(recorded[0]), uint64_t(recorded[1]), threshold, drops_all};
    const Mask mask{source.get_seed(), source.get_offset(), threshold, drops_all};
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      record[0] = int64_t(mask.seed);
      record[1] = int64_t(mask.offset);
    }
    return mask;
  }
};

// x * scale where kept, +0 where not, even of a NaN.
template <class T, class V>
__device__ __forceinline__ T dropped(T x, V scale, bool keep) {
  return keep ? store<T>(load(x) * scale) : store<T>(V(0));
}

// A word whose number is not known before the kernel runs, without an array in memory.
__device__ __forceinline__ uint32_t word_at(const PhiloxBlock& block, int number) {
  return number < 2 ? (number == 0 ? block.word[0] : block.word[1]) : (number == 2 ? block.word[2] : block.word[3]);
}

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

// Rows: logical index (sample * C + channel) * S + position. A thread has n channels at kPositions positions: it
// computes the words of a channel at all of them, then goes through the positions by packs.
constexpr int kPositions = 16;

template <class T, int n>
__global__ void __launch_bounds__(kThreads)
    drop_rows(const T* x, T* y, Layout layout, MaskSource source, Compute<T> scale) {
  const Mask mask = source.get();
  const int64_t C = layout.channels, S = layout.positions, packs = C / n, spans = (S + kPositions - 1) / kPositions;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= layout.samples * spans * packs) return;
  const int64_t channel = item % packs * n, sample = item / packs / spans, first = item / packs % spans * kPositions;
  const int64_t numel = layout.samples * C * S;
  const int count = int(S - first < kPositions ? S - first : kPositions);

  uint32_t keeps[n];  // bit p: the channel is kept at position first + p
#pragma unroll
  for (int c = 0; c < n; ++c) {
    const uint64_t index = uint64_t((sample * C + channel + c) * S + first);
    const int phase = int(index % 4);
    uint32_t bits = 0;
#pragma unroll
    for (int b = 0; b <= kPositions / 4; ++b) {
      if (b == kPositions / 4 && phase == 0) break;
      const PhiloxBlock block = philox_block(mask.seed, mask.offset, index / 4 + b);
#pragma unroll
      for (int w = 0; w < 4; ++w) bits |= uint32_t(mask.keeps(block.word[w])) << (4 * b + w);
    }
    keeps[c] = bits >> phase;
  }
  const int64_t start = (sample * S + first) * C + channel;
  for (int p = 0; p < count; p += kFlatUnroll) {
    Piece<n> pieces[kFlatUnroll];
    Pack<T, n> packs_there[kFlatUnroll];
#pragma unroll
    for (int u = 0; u < kFlatUnroll; ++u) {
      pieces[u] = {start + (p + u) * C, 0, p + u < count ? n : 0};
      packs_there[u] = load_piece<Read::kOnce>(x, pieces[u], numel);
    }
#pragma unroll
    for (int u = 0; u < kFlatUnroll; ++u) {
#pragma unroll
      for (int c = 0; c < n; ++c) {
        packs_there[u].value[c] = dropped(packs_there[u].value[c], scale, keeps[c] >> (p + u) & 1);
      }
      store_piece(y, pieces[u], packs_there[u]);
    }
  }
}

template <class T, int n>
void launch_dropout(const DropoutCall& call, const MaskSource& source) {
  const T* x = static_cast<const T*>(call.x);
  T* y = static_cast<T*>(call.y);
  const auto scale = Compute<T>(call.rate.scale);
  if (call.in_logical_order) {
    launch(drop_in_order<T, n>, flat_blocks(call.numel(), n), kThreads, 0, x, y, call.numel(), source, scale);
    return;
  }
  const int64_t items = call.layout.samples * ceil_div(call.layout.positions, kPositions) * (call.layout.channels / n);
  launch(drop_rows<T, n>, std::max<int64_t>(1, ceil_div(items, kThreads)), kThreads, 0, x, y, call.layout, source,
         scale);
}

void drop(const DropoutCall& call, const MaskSource& source) {
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool aligned = is_pack_aligned(call.x) && is_pack_aligned(call.y);
    if (aligned && (call.in_logical_order || call.layout.channels % kPack<T> == 0))
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

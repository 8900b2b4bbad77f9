// Masks of dropout. They are never stored: the words of the Philox stream are computed wherever they are needed, from
// seed, offset and the logical index of the element.
#pragma once

#include "core/layout.h"
#include "core/mask_source.h"
#include "core/philox.h"
#include "core/scalar.h"
#include "cuda/device/platform.cuh"

namespace fusedtricks::cuda {

struct Mask {
  uint64_t seed, offset;
  uint32_t threshold;
  bool drops_all;  // then the threshold does not matter: 2^32 does not fit into it

  FT_INLINE bool keeps(uint32_t word) const { return word >= threshold && !drops_all; }
};

// The mask of a call; one that keeps everything if the call has none. If the call drew the mask, one thread of the grid
// records it.
__device__ __forceinline__ Mask read_mask(const MaskSource& source) {
  if (!source) return {0, 0, 0, false};
  if (blockIdx.x == 0 && threadIdx.x == 0) source.write_record();
  return {source.seed(), source.offset(), uint32_t(source.rate.threshold), source.rate.drops_all()};
}

// What becomes of kept and of dropped values.
template <class V>
struct Drop {
  V scale, shift, fill;
  bool is_linear;

  explicit Drop(const DropRate& rate)
      : scale(V(rate.scale)), shift(V(rate.shift)), fill(V(rate.fill)), is_linear(rate.is_linear()) {}

  FT_INLINE V operator()(V x, bool keep) const {
    const V scaled = x * scale;
    // Without a shift nothing is added, not even 0: that would turn -0 into 0.
    return keep ? (is_linear ? scaled : scaled + shift) : fill;
  }
};

// A word of a block whose number is only known at run time. An index would put the block into local memory.
__device__ __forceinline__ uint32_t word_at(const PhiloxBlock& block, int number) {
  return number < 2 ? (number == 0 ? block.word[0] : block.word[1]) : (number == 2 ? block.word[2] : block.word[3]);
}

// Calls f(e, whether element e is kept) for the n elements of a pack, in a tensor whose memory is in logical order.
// index: of the pack's first element, a multiple of n.
template <int n, class F>
__device__ __forceinline__ void for_kept_in_order(const Mask& mask, uint64_t index, const F& f) {
  constexpr int run = n < 4 ? n : 4;  // elements of the pack that share a block of words
#pragma unroll
  for (int first = 0; first < n; first += run) {
    const uint64_t i = index + first;
    const PhiloxBlock block = philox_block(mask.seed, mask.offset, i / 4);
#pragma unroll
    for (int e = 0; e < run; ++e) f(first + e, mask.keeps(word_at(block, run == 4 ? e : int(i % 4) + e)));
  }
}

// The same as bits: bit e says whether element e is kept.
template <int n>
__device__ __forceinline__ uint32_t kept_in_order(const Mask& mask, int64_t index) {
  uint32_t kept = 0;
  for_kept_in_order<n>(mask, uint64_t(index), [&](int e, bool keeps) { kept |= uint32_t(keeps) << e; });
  return kept;
}

// The same bits for a channels_last tensor, where every element of the pack needs a block of its own.
template <int n>
__device__ __forceinline__ uint32_t kept_of_row(const Mask& mask, const Layout& layout, int64_t index) {
  const int64_t C = layout.channels, S = layout.positions;
  int64_t row = index / C, channel = index - row * C, sample = row / S, position = row - sample * S;
  uint32_t kept = 0;
#pragma unroll 1  // unrolled, it would need too many registers
  for (int e = 0; e < n; ++e) {
    const uint64_t i = uint64_t((sample * C + channel) * S + position);
    kept |= uint32_t(mask.keeps(word_at(philox_block(mask.seed, mask.offset, i / 4), int(i % 4)))) << e;
    // A pack can continue in the next row.
    if (++channel < C) continue;
    channel = 0;
    if (++position == S) position = 0, ++sample;
  }
  return kept;
}

}  // namespace fusedtricks::cuda

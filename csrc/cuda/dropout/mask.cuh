// Masks of dropout: words of the Philox stream wherever they are needed, recomputed from (seed, offset, logical index).
#pragma once

#include <optional>

#include "core/scalar.h"
#include "core/layout.h"
#include "core/philox.h"
#include "cuda/device/platform.cuh"
#include "cuda/device/random_source.h"

namespace fusedtricks::cuda {

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

  // From the seed, or else from torch's generator, and recorded in rng_state.
  static MaskSource drawn(const DropRate& rate, std::optional<int64_t> seed, int64_t* rng_state) {
    const auto source = seed ? RandomSource{uint64_t(*seed), 0} : draw_random_source();
    return {source, nullptr, rng_state, uint32_t(rate.threshold), rate.drops_all()};
  }
  static MaskSource recorded_in(const DropRate& rate, const int64_t* rng_state) {
    return {{}, rng_state, nullptr, uint32_t(rate.threshold), rate.drops_all()};
  }

  // Everything is kept.
  static MaskSource none() { return {{}, nullptr, nullptr, 0, false}; }

  FT_INLINE bool is_drawn() const { return recorded || record; }

  __device__ __forceinline__ Mask get() const {
    if (!is_drawn()) return {0, 0, 0, false};
    if (recorded) return {uint64_t(recorded[0]), uint64_t(recorded[1]), threshold, drops_all};
    const Mask mask{source.get_seed(), source.get_offset(), threshold, drops_all};
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      record[0] = int64_t(mask.seed);
      record[1] = int64_t(mask.offset);
    }
    return mask;
  }
};

// What becomes of kept and dropped values. Without a shift, zeros keep their sign.
template <class V>
struct Drop {
  V scale, shift, fill;
  bool is_linear;

  explicit Drop(const DropRate& rate)
      : scale(V(rate.scale)), shift(V(rate.shift)), fill(V(rate.fill)), is_linear(rate.is_linear()) {}

  FT_INLINE V operator()(V x, bool keep) const {
    const V scaled = x * scale;
    return keep ? (is_linear ? scaled : scaled + shift) : fill;
  }
};

// A word whose number is not known before the kernel runs, without an array in memory.
__device__ __forceinline__ uint32_t word_at(const PhiloxBlock& block, int number) {
  return number < 2 ? (number == 0 ? block.word[0] : block.word[1]) : (number == 2 ? block.word[2] : block.word[3]);
}

// Bit e: whether element e of the pack at an index, a multiple of n, is kept. Memory is in logical order.
template <int n>
__device__ __forceinline__ uint32_t kept_in_order(const Mask& mask, int64_t index) {
  constexpr int run = n < 4 ? n : 4;  // elements of a pack that have one block of words
  uint32_t kept = 0;
#pragma unroll
  for (int first = 0; first < n; first += run) {
    const uint64_t i = uint64_t(index + first);
    const PhiloxBlock block = philox_block(mask.seed, mask.offset, i / 4);
#pragma unroll
    for (int e = 0; e < run; ++e) {
      kept |= uint32_t(mask.keeps(word_at(block, run == 4 ? e : int(i % 4) + e))) << (first + e);
    }
  }
  return kept;
}

// The same where channels are innermost: each has a block of its own.
template <int n>
__device__ __forceinline__ uint32_t kept_of_row(const Mask& mask, const Layout& layout, int64_t index) {
  const int64_t C = layout.channels, S = layout.positions;
  int64_t row = index / C, channel = index - row * C, sample = row / S, position = row - sample * S;
  uint32_t kept = 0;
#pragma unroll 1  // or the registers do not do
  for (int e = 0; e < n; ++e) {
    const uint64_t i = uint64_t((sample * C + channel) * S + position);
    kept |= uint32_t(mask.keeps(word_at(philox_block(mask.seed, mask.offset, i / 4), int(i % 4)))) << e;
    // A pack may reach into the next row.
    if (++channel < C) continue;
    channel = 0;
    if (++position == S) position = 0, ++sample;
  }
  return kept;
}

}  // namespace fusedtricks::cuda

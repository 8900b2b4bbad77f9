// Dropout inside the kernels of batch_norm_act: the values of a pack are masked and scaled in registers, in the compute
// type.
#pragma once

#include "mask.cuh"
#include "walk.cuh"

namespace fusedtricks::cuda {

// What leaves values as they are.
struct AsTheyAre {
  template <class... Any>
  __device__ __forceinline__ void operator()(const Any&...) const {}
};

// A kernel without dropout.
struct NoDropout {
  static constexpr bool drops = false;

  __device__ __forceinline__ AsTheyAre begin() const { return {}; }
};

// A mask in a kernel.
template <class V>
struct Dropping {
  Mask mask;
  Layout layout;
  V scale;
  bool masks;

  template <int n>
  __device__ __forceinline__ void operator()(const Piece<n>& piece, V (&values)[n]) const {
    const uint32_t kept = !masks                                ? ~0u
                          : layout.rows && layout.positions > 1 ? kept_of_row<n>(piece.index)
                                                                : kept_in_order<n>(piece.index);
#pragma unroll
    for (int e = 0; e < n; ++e) values[e] = kept >> e & 1 ? values[e] * scale : V(0);
  }

 private:
  // Bit e: whether element e of the pack at an index, a multiple of n, is kept. Memory is in logical order.
  template <int n>
  __device__ __forceinline__ uint32_t kept_in_order(int64_t index) const {
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
  __device__ __forceinline__ uint32_t kept_of_row(int64_t index) const {
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
};

// What a kernel with dropout is given. masks: else it scales alone, what was dropped being known otherwise.
template <class V>
struct Dropout {
  static constexpr bool drops = true;

  MaskSource source;
  Layout layout;
  V scale;
  bool masks;

  __device__ __forceinline__ Dropping<V> begin() const { return {masks ? source.get() : Mask{}, layout, scale, masks}; }
};

}  // namespace fusedtricks::cuda

// Philox for many counters at once, with one 32-bit word in each 64-bit lane of a vector, so that the widening
// multiplication of a round is one instruction. Several vectors go through the rounds together: one alone would wait
// for its own multiplications (1.7 times slower with AVX-512, 1.5 without).
#pragma once

#include <cstring>
#include <utility>

#include "core/philox.h"
#include "cpu/simd/instruction_set.h"

namespace fusedtricks::cpu {

constexpr int kCountersAtOnce = kPhiloxVectors * kWordLanes;

struct VectorMultiply {
  FT_INLINE Words operator()(Words a, uint32_t m) const { return multiply_low_halves(a, m); }
};

// a0 b0 a1 b1 …: the first half of these elements, or the second.
template <bool second_half, int... i>
FT_INLINE Words interleaved(Words a, Words b, std::integer_sequence<int, i...>) {
  constexpr int first = second_half ? kWordLanes / 2 : 0;
  return __builtin_shufflevector(a, b, (first + i / 2 + i % 2 * kWordLanes)...);
}

// The random blocks of kCountersAtOnce counters: word w of the counter in lane j of vector v is the low half of
// word[v][w][j]. The high halves are garbage.
struct PhiloxLanes {
  Words word[kPhiloxVectors][4];

  // counters(v): those of vector v.
  template <class Counters>
  FT_INLINE PhiloxLanes(const Counters& counters, uint64_t seed, uint64_t offset) {
#pragma GCC unroll 8
    for (int v = 0; v < kPhiloxVectors; ++v) {
      word[v][0] = counters(v);
      word[v][1] = word[v][0] >> 32;
      word[v][2] = Words{} + offset;
      word[v][3] = Words{} + (offset >> 32);
    }
    philox4x32_10(word, seed, VectorMultiply{});
  }

  // to[4 * j + w] = word w of counter j, counting the lanes of all vectors.
  FT_INLINE void store_interleaved(uint32_t* to) const {
    constexpr auto lanes = std::make_integer_sequence<int, kWordLanes>();
    const Words low = Words{} + 0xffffffffu;
#pragma GCC unroll 8
    for (int v = 0; v < kPhiloxVectors; ++v) {
      const Words a = (word[v][0] & low) | (word[v][1] << 32);
      const Words b = (word[v][2] & low) | (word[v][3] << 32);
      const Words first = interleaved<false>(a, b, lanes), second = interleaved<true>(a, b, lanes);
      std::memcpy(to + 4 * kWordLanes * v, &first, sizeof(first));
      std::memcpy(to + 4 * kWordLanes * v + 2 * kWordLanes, &second, sizeof(second));
    }
  }

  // to[w * pitch + j] = word w of lane j of one vector.
  FT_INLINE void store_planar(int vector, uint32_t* to, int pitch) const {
    for (int w = 0; w < 4; ++w) {
      for (int j = 0; j < kWordLanes; ++j) to[w * pitch + j] = uint32_t(word[vector][w][j]);
    }
  }
};

}  // namespace fusedtricks::cpu

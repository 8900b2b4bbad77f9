// Philox for many counters at once: one 32-bit word in each 64-bit lane of a vector, so that a round's widening
// multiplication is one instruction. Only that instruction differs between instruction sets. Several vectors go through
// the rounds together: one alone waits for its own multiplications (1.7 times slower with AVX-512, 1.5 without).
#pragma once

#include <cstring>

#include "core/philox.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define FT_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FT_VECTOR_BYTES 32
#else
#define FT_VECTOR_BYTES 16
#endif

namespace fusedtricks::cpu {

typedef uint64_t Words __attribute__((vector_size(FT_VECTOR_BYTES)));

constexpr int kLanesOfVector = FT_VECTOR_BYTES / int(sizeof(uint64_t));
constexpr int kVectors = FT_VECTOR_BYTES == 64 ? 8 : 4;
constexpr int kCountersAtOnce = kVectors * kLanesOfVector;

struct VectorMultiply {
  FT_INLINE Words operator()(Words a, uint32_t m) const {
#if defined(__AVX512F__)
    return Words(_mm512_mul_epu32(__m512i(a), _mm512_set1_epi64(m)));
#elif defined(__AVX2__)
    return Words(_mm256_mul_epu32(__m256i(a), _mm256_set1_epi64x(m)));
#elif defined(__x86_64__)
    return Words(_mm_mul_epu32(__m128i(a), _mm_set1_epi64x(m)));
#elif defined(__ARM_NEON)
    return Words(vmull_u32(vmovn_u64(uint64x2_t(a)), vdup_n_u32(m)));
#else
    return (a & 0xffffffffu) * m;
#endif
  }
};

// The blocks of kCountersAtOnce counters: word w of lane j of vector v in lane j of word[v][w], below garbage.
struct PhiloxLanes {
  Words word[kVectors][4];

  // counters(v): those of vector v.
  template <class Counters>
  FT_INLINE PhiloxLanes(const Counters& counters, uint64_t seed, uint64_t offset) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      word[v][0] = counters(v);
      word[v][1] = word[v][0] >> 32;
      word[v][2] = Words{} + offset;
      word[v][3] = Words{} + (offset >> 32);
    }
    philox4x32_10(word, seed, VectorMultiply{});
  }

  // to[4 * j + w] = word w of counter j, counted through all vectors.
  FT_INLINE void store_interleaved(uint32_t* to) const {
    const Words low = Words{} + 0xffffffffu;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Words a = (word[v][0] & low) | (word[v][1] << 32);
      const Words b = (word[v][2] & low) | (word[v][3] << 32);
#if FT_VECTOR_BYTES == 64
      const Words first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      const Words second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif FT_VECTOR_BYTES == 32
      const Words first = __builtin_shufflevector(a, b, 0, 4, 1, 5), second = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#else
      const Words first = __builtin_shufflevector(a, b, 0, 2), second = __builtin_shufflevector(a, b, 1, 3);
#endif
      std::memcpy(to + 4 * kLanesOfVector * v, &first, sizeof(first));
      std::memcpy(to + 4 * kLanesOfVector * v + 2 * kLanesOfVector, &second, sizeof(second));
    }
  }

  // to[w * pitch + j] = word w of lane j of one vector.
  FT_INLINE void store_planar(int vector, uint32_t* to, int pitch) const {
    for (int w = 0; w < 4; ++w) {
      for (int j = 0; j < kLanesOfVector; ++j) to[w * pitch + j] = uint32_t(word[vector][w][j]);
    }
  }
};

}  // namespace fusedtricks::cpu

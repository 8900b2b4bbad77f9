// Philox for many counters at once: one 32-bit word in each 64-bit lane of a vector, so that a round's widening
// multiplication is one instruction. Only that instruction differs between instruction sets.
#pragma once

#include <cstring>

#include "../philox.h"

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

constexpr int kCountersAtOnce = FT_VECTOR_BYTES / int(sizeof(uint64_t));

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

// The blocks of kCountersAtOnce counters: word w of counter j in lane j of word[w], below garbage.
struct PhiloxLanes {
  Words word[4];

  PhiloxLanes(Words counter, uint64_t seed, uint64_t offset)
      : word{counter, counter >> 32, Words{} + offset, Words{} + (offset >> 32)} {
    philox4x32_10(word, seed, VectorMultiply{});
  }

  // to[4 * j + w] = word w of counter j.
  FT_INLINE void store_interleaved(uint32_t* to) const {
    const Words low = Words{} + 0xffffffffu;
    const Words a = (word[0] & low) | (word[1] << 32), b = (word[2] & low) | (word[3] << 32);
#if FT_VECTOR_BYTES == 64
    const Words first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    const Words second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif FT_VECTOR_BYTES == 32
    const Words first = __builtin_shufflevector(a, b, 0, 4, 1, 5), second = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#else
    const Words first = __builtin_shufflevector(a, b, 0, 2), second = __builtin_shufflevector(a, b, 1, 3);
#endif
    std::memcpy(to, &first, sizeof(first));
    std::memcpy(to + sizeof(first) / sizeof(uint32_t), &second, sizeof(second));
  }

  // to[w * pitch + j] = word w of counter j.
  FT_INLINE void store_planar(uint32_t* to, int pitch) const {
    for (int w = 0; w < 4; ++w) {
      for (int j = 0; j < kCountersAtOnce; ++j) to[w * pitch + j] = uint32_t(word[w][j]);
    }
  }
};

}  // namespace fusedtricks::cpu

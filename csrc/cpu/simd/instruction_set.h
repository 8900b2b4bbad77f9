// What differs between instruction sets. A new one touches this file and setup.py.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace fusedtricks::cpu {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kPhiloxVectors = 8;  // that go through the rounds together; see philox_lanes.h
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kPhiloxVectors = 4;
#else
constexpr int kVectorBytes = 16;
constexpr int kPhiloxVectors = 4;
#endif

// Whether stream_vector() writes past the caches.
#if defined(__x86_64__)
constexpr bool kHasStreamingStores = true;
#else
constexpr bool kHasStreamingStores = false;
#endif

// 64-bit lanes.
typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));
typedef int64_t SignedWords __attribute__((vector_size(kVectorBytes)));
constexpr int kWordLanes = kVectorBytes / int(sizeof(uint64_t));

// Products of the low halves of the lanes with m; the high halves are ignored.
FT_INLINE Words multiply_low_halves(Words a, uint32_t m) {
#if defined(__AVX512F__)
  // Not _mm512_mul_epu32, which gcc 12 warns about: its header passes an uninitialised vector.
  return Words(_mm512_maskz_mul_epu32(0xff, __m512i(a), _mm512_set1_epi64(m)));
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

// Copies one vector past the caches, to an address that is a multiple of kVectorBytes.
FT_INLINE void stream_vector(void* to, const void* from) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__AVX2__)
  _mm256_stream_si256(static_cast<__m256i*>(to), _mm256_loadu_si256(static_cast<const __m256i*>(from)));
#elif defined(__x86_64__)
  _mm_stream_si128(static_cast<__m128i*>(to), _mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
  std::memcpy(to, from, kVectorBytes);
#endif
}

// After the last stream_vector() of a task: other threads see what was written.
FT_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace fusedtricks::cpu

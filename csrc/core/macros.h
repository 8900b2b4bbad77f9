// FT_INLINE: a function for host and device, always inlined.
#pragma once

#if defined(__CUDACC__)
#define FT_INLINE __host__ __device__ __forceinline__
#else
#define FT_INLINE inline __attribute__((always_inline))
#endif

// Unrolls the loop that follows, of at most 16 rounds.
#if defined(__CUDACC__)
#define FT_UNROLL _Pragma("unroll")
#else
#define FT_UNROLL _Pragma("GCC unroll 16")
#endif

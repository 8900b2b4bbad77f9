// FT_INLINE declares a function for host and device that is always inlined.
#pragma once

#if defined(__CUDACC__)
#define FT_INLINE __host__ __device__ __forceinline__
#else
#define FT_INLINE inline __attribute__((always_inline))
#endif

// FT_UNROLL unrolls the loop that follows it, which has at most 16 iterations.
#if defined(__CUDACC__)
#define FT_UNROLL _Pragma("unroll")
#else
#define FT_UNROLL _Pragma("GCC unroll 16")
#endif

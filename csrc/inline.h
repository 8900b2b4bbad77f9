// FT_INLINE: a function for host and device, always inlined.
#pragma once

#if defined(__CUDACC__)
#define FT_INLINE __host__ __device__ __forceinline__
#else
#define FT_INLINE inline __attribute__((always_inline))
#endif

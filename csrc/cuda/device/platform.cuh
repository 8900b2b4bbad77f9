// What the kernels need of CUDA: the runtime and its built-in functions, launches, shared memory of a size that the
// launch gives, copies into it. Compiled by nvcc for a GPU; by a C++ compiler, with FUSEDTRICKS_EMULATED, to run on the
// CPU in tests.
#pragma once

#include <cstdint>

#if defined(FUSEDTRICKS_EMULATED)
#include "emulation.h"
#else
#include <cooperative_groups.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cuda/atomic>

#include "cuda/device/device.h"

namespace fusedtricks::cuda {

// On the current stream. A kernel that cannot start is a RuntimeError. cooperative: all blocks run at once, so that
// they can meet in grid_sync().
template <bool cooperative, class... Parameters, class... Arguments>
void launch_kernel(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
                   Arguments... arguments) {
  constexpr size_t without_asking = 48 << 10;
  const auto function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > without_asking) {
    // The most there is, whatever this call needs: another thread may be about to launch the same kernel.
    check_launch(
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_memory_per_block(1))));
  }
  const auto run = [&](Parameters... values) {
    void* pointers[] = {&values...};
    const auto start = cooperative ? cudaLaunchCooperativeKernel<const void> : cudaLaunchKernel<const void>;
    check_launch(start(function, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), pointers,
                       shared_bytes, current_stream()));
  };
  run(arguments...);
}

template <class Kernel, class... Arguments>
void launch(Kernel* kernel, int64_t blocks, int threads, size_t shared_bytes, Arguments... arguments) {
  launch_kernel<false>(kernel, blocks, threads, shared_bytes, arguments...);
}

template <class Kernel, class... Arguments>
void launch_cooperative(Kernel* kernel, int64_t blocks, int threads, size_t shared_bytes, Arguments... arguments) {
  launch_kernel<true>(kernel, blocks, threads, shared_bytes, arguments...);
}

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

// The 16 bytes at an address that is a multiple of 16; the twin reads the first `bytes_there` alone.
template <bool once>
__device__ __forceinline__ uint4 read_block(const void* p, int64_t /*bytes_there*/) {
  const uint4* at = static_cast<const uint4*>(p);
  return once ? __ldcs(at) : *at;
}

__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

// Waits for other blocks, all of which run at once: until so many arrivals are counted, of which this block's is one.
// What they wrote before can then be read past the first cache.
__device__ __forceinline__ void meet_blocks(uint32_t* arrivals, uint32_t all) {
  __syncthreads();
  if (threadIdx.x == 0) {
    ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_device> counted(*arrivals);
    counted.fetch_add(1, ::cuda::memory_order_acq_rel);
    while (counted.load(::cuda::memory_order_acquire) < all) {
    }
  }
  __syncthreads();
}

// Copies 16 bytes from global to shared memory while the thread goes on, for wait_for_copies to wait for.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  __pipeline_memcpy_async(shared, global, 16);
}
__device__ __forceinline__ void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
  asm volatile("" ::: "memory");  // what was copied is not read before
}

}  // namespace fusedtricks::cuda
#endif

// What the kernels use of CUDA: its runtime and built-in functions, launches, dynamic shared memory and asynchronous
// copies into it. nvcc compiles the kernels for a GPU. With FUSEDTRICKS_EMULATED a C++ compiler compiles them for the
// CPU instead, where the tests run them: then tests/emulation/emulation.h provides the same names.
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

// Launches on the current stream; throws a RuntimeError where the kernel cannot start. cooperative: all blocks run at
// the same time, so that they can wait for each other.
template <bool cooperative, class... Parameters, class... Arguments>
void launch_kernel(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
                   Arguments... arguments) {
  constexpr size_t default_limit = 48 << 10;
  const auto function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > default_limit) allow_large_shared_memory(function);
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

// The block's dynamic shared memory, whose size the launch gives.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

// The 16 bytes at an address that is a multiple of 16. once: nothing reads them again, so the caches need not keep
// them. The emulation reads no more than the first `bytes_there`, those that belong to the tensor.
template <bool once>
__device__ __forceinline__ uint4 read_block(const void* p, int64_t /*bytes_there*/) {
  const uint4* at = static_cast<const uint4*>(p);
  return once ? __ldcs(at) : *at;
}

// A barrier between all blocks of a cooperative launch.
__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

// A barrier between some blocks of a cooperative launch. Each call adds one to *arrivals and returns when it has
// reached `all`. What the other blocks wrote before they arrived can then be read, with loads that bypass the
// first-level cache.
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

// Starts to copy 16 bytes from global to shared memory. The thread goes on; wait_for_copies() waits for all the copies
// that it has started.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  __pipeline_memcpy_async(shared, global, 16);
}
__device__ __forceinline__ void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
  asm volatile("" ::: "memory");  // keeps the compiler from reading the copies earlier
}

}  // namespace fusedtricks::cuda
#endif

// What the kernels need of CUDA: the runtime and its built-in functions, a launch, shared memory of a size that the
// launch gives. Compiled by nvcc for a GPU; by a C++ compiler, with FUSEDTRICKS_EMULATED, to run on the CPU in tests.
#pragma once

#include <cstdint>

#if defined(FUSEDTRICKS_EMULATED)
#include "emulation.h"
#else
#include <cuda_runtime.h>

#include "device.h"

namespace fusedtricks::cuda {

// On the current stream. A kernel that cannot start is a RuntimeError.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, Arguments... arguments) {
  const auto run = [&](Parameters... values) {
    void* pointers[] = {&values...};
    check_launch(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                                  dim3(static_cast<unsigned>(threads)), pointers, shared_bytes, current_stream()));
  };
  run(arguments...);
}

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

}  // namespace fusedtricks::cuda
#endif

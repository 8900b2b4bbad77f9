// The current GPU and its stream, as the host asks for them when it launches kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fusedtricks::cuda {

cudaStream_t current_stream();

// Does nothing for cudaSuccess; otherwise throws a RuntimeError that says in one sentence why the launch failed.
void check_launch(cudaError_t error);

// Number of multiprocessors of the current GPU.
int multiprocessors();

// Bytes of shared memory that each block may use if this many blocks are to run on a multiprocessor at the same time.
int64_t shared_memory_per_block(int blocks);

// Lets the kernel's blocks use all the shared memory that a block can have on the current GPU; by default CUDA stops at
// 48 KB. CUDA is asked once per kernel and GPU.
void allow_large_shared_memory(const void* kernel);

}  // namespace fusedtricks::cuda

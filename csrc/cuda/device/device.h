// The current device and stream of the tensors that an operator was called with.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fusedtricks::cuda {

cudaStream_t current_stream();

// RuntimeError, in one sentence, where a launch ended in an error.
void check_launch(cudaError_t error);

// Number of multiprocessors of the current device.
int multiprocessors();

// Bytes of shared memory that a block may have there if a multiprocessor is to run so many at once.
int64_t shared_memory_per_block(int blocks);

}  // namespace fusedtricks::cuda

#include "cuda/batch_norm/launch.cuh"

template struct fusedtricks::cuda::BatchNormKernels<c10::BFloat16>;

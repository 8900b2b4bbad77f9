#include "batch_norm_pool_launch.cuh"

template struct fusedtricks::cuda::BatchNormPoolKernels<c10::BFloat16>;

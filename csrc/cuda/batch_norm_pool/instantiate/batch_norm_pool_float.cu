#include "cuda/batch_norm_pool/launch.cuh"

template struct fusedtricks::cuda::BatchNormPoolKernels<float>;

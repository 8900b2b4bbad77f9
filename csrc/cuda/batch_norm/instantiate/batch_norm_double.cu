#include "cuda/batch_norm/launch.cuh"

template struct fusedtricks::cuda::BatchNormKernels<double>;

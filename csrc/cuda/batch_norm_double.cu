#include "batch_norm_launch.cuh"

template struct fusedtricks::cuda::BatchNormKernels<double>;

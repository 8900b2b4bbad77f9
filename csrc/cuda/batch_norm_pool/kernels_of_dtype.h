// The kernels of batch_norm_act_max_pool2d for one dtype each, once the statistics are recorded.
#pragma once

#include "calls/batch_norm_pool.h"

namespace fusedtricks::cuda {

template <class T>
struct BatchNormPoolKernels {
  static int64_t backward_workspace(const BatchNormPoolBackward& a);
  static void forward(const BatchNormPoolForward& a);
  static void backward(const BatchNormPoolBackward& a);
};

}  // namespace fusedtricks::cuda

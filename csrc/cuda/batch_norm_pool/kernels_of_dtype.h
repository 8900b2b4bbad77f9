// The kernels of batch_norm_act_max_pool2d for one dtype.
#pragma once

#include "calls/batch_norm_pool.h"

namespace fusedtricks::cuda {

template <class T>
struct BatchNormPoolKernels {
  // Needs what BatchNormKernels::statistics records: mean and rstd.
  static void forward(const BatchNormPoolForward& a);
  static int64_t backward_workspace(const BatchNormPoolBackward& a);
  static void backward(const BatchNormPoolBackward& a);
};

}  // namespace fusedtricks::cuda

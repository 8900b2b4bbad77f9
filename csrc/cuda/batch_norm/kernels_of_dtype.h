// The kernels of batch_norm_act for one dtype. Every dtype is instantiated in a file of its own, so that they compile
// at the same time.
#pragma once

#include "calls/batch_norm.h"
#include "cuda/batch_norm/path.h"

namespace fusedtricks::cuda {

template <class T>
struct BatchNormKernels {
  // The workspaces are for this path: the call has to be made with the same one.
  static int64_t forward_workspace(const BatchNormForward& a, Path path);
  static int64_t backward_workspace(const BatchNormBackward& a, Path path);
  static void forward(const BatchNormForward& a, Path path);
  static void backward(const BatchNormBackward& a, Path path);

  // Only the first half of the forward: the statistics that it normalises with, recorded in mean, rstd and the running
  // statistics.
  static int64_t statistics_workspace(const BatchNormForward& a);
  static void statistics(const BatchNormForward& a);
};

}  // namespace fusedtricks::cuda

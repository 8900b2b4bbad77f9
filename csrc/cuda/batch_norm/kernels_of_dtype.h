// The kernels of batch_norm_act for one dtype each: a file apiece, so that they compile side by side.
#pragma once

#include "calls/batch_norm.h"
#include "cuda/batch_norm/path.h"

namespace fusedtricks::cuda {

template <class T>
struct BatchNormKernels {
  static int64_t forward_workspace(const BatchNormForward& a);
  static int64_t backward_workspace(const BatchNormBackward& a);
  static void forward(const BatchNormForward& a, Path path);
  static void backward(const BatchNormBackward& a, Path path);
  // The first half of the forward: what it normalises with, recorded. Takes the forward's workspace.
  static void statistics(const BatchNormForward& a);
};

}  // namespace fusedtricks::cuda

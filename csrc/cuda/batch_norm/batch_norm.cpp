// batch_norm_act on a GPU: from the dtype at run time to the kernels of that type.
#include "cuda/batch_norm/kernels_of_dtype.h"

#include "core/dtypes.h"

namespace fusedtricks::cuda {
namespace {

int64_t forward_workspace(const BatchNormForward& a) {
  int64_t bytes = 0;
  visit_dtype(a.dtype, [&](auto type) {
    bytes = BatchNormKernels<typename decltype(type)::type>::forward_workspace(a, chosen_path());
  });
  return bytes;
}

int64_t backward_workspace(const BatchNormBackward& a) {
  int64_t bytes = 0;
  visit_dtype(a.dtype, [&](auto type) {
    bytes = BatchNormKernels<typename decltype(type)::type>::backward_workspace(a, chosen_path());
  });
  return bytes;
}

void forward(const BatchNormForward& a) {
  visit_dtype(a.dtype, [&](auto type) { BatchNormKernels<typename decltype(type)::type>::forward(a, chosen_path()); });
}

void backward(const BatchNormBackward& a) {
  visit_dtype(a.dtype, [&](auto type) { BatchNormKernels<typename decltype(type)::type>::backward(a, chosen_path()); });
}

const Provided provided[] = {
    {kernels::batch_norm_forward_workspace, forward_workspace},
    {kernels::batch_norm_backward_workspace, backward_workspace},
    {kernels::batch_norm_forward, forward},
    {kernels::batch_norm_backward, backward},
};

}  // namespace
}  // namespace fusedtricks::cuda

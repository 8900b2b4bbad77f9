// batch_norm_act_max_pool2d on a GPU: from the dtype at run time to the kernels of that type.
#include "cuda/batch_norm_pool/kernels_of_dtype.h"

#include "core/dtypes.h"
#include "cuda/batch_norm/kernels_of_dtype.h"

namespace fusedtricks::cuda {
namespace {

int64_t forward_workspace(const BatchNormPoolForward& a) {
  int64_t bytes = 0;
  visit_dtype(a.norm.dtype, [&](auto type) {
    bytes = BatchNormKernels<typename decltype(type)::type>::statistics_workspace(a.norm);
  });
  return bytes;
}

int64_t backward_workspace(const BatchNormPoolBackward& a) {
  int64_t bytes = 0;
  visit_dtype(a.norm.dtype,
              [&](auto type) { bytes = BatchNormPoolKernels<typename decltype(type)::type>::backward_workspace(a); });
  return bytes;
}

void forward(const BatchNormPoolForward& a) {
  visit_dtype(a.norm.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    BatchNormKernels<T>::statistics(a.norm);
    BatchNormPoolKernels<T>::forward(a);
  });
}

void backward(const BatchNormPoolBackward& a) {
  visit_dtype(a.norm.dtype, [&](auto type) { BatchNormPoolKernels<typename decltype(type)::type>::backward(a); });
}

const Provided provided[] = {
    {kernels::batch_norm_pool_forward_workspace, forward_workspace},
    {kernels::batch_norm_pool_backward_workspace, backward_workspace},
    {kernels::batch_norm_pool_forward, forward},
    {kernels::batch_norm_pool_backward, backward},
};

}  // namespace
}  // namespace fusedtricks::cuda

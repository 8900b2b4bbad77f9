// batch_norm_act_max_pool2d on a GPU: from the dtype to its kernels.
#include "cuda/batch_norm_pool/kernels_of_dtype.h"

#include "core/dtypes.h"
#include "cuda/batch_norm/kernels_of_dtype.h"

namespace fusedtricks::backend {

int64_t batch_norm_pool_forward_workspace(const BatchNormPoolForward& a) {
  return batch_norm_forward_workspace(a.norm);
}

int64_t batch_norm_pool_backward_workspace(const BatchNormPoolBackward& a) {
  int64_t bytes = 0;
  visit_dtype(a.norm.dtype, [&](auto type) {
    bytes = cuda::BatchNormPoolKernels<typename decltype(type)::type>::backward_workspace(a);
  });
  return bytes;
}

void batch_norm_pool_forward(const BatchNormPoolForward& a) {
  visit_dtype(a.norm.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    cuda::BatchNormKernels<T>::statistics(a.norm);
    cuda::BatchNormPoolKernels<T>::forward(a);
  });
}

void batch_norm_pool_backward(const BatchNormPoolBackward& a) {
  visit_dtype(a.norm.dtype, [&](auto type) { cuda::BatchNormPoolKernels<typename decltype(type)::type>::backward(a); });
}

}  // namespace fusedtricks::backend

// batch_norm_act on a GPU: from the dtype to its kernels.
#include "cuda/batch_norm/kernels_of_dtype.h"

#include "core/dtypes.h"

namespace fusedtricks::backend {

int64_t batch_norm_forward_workspace(const BatchNormForward& a) {
  int64_t bytes = 0;
  visit_dtype(a.dtype,
              [&](auto type) { bytes = cuda::BatchNormKernels<typename decltype(type)::type>::forward_workspace(a); });
  return bytes;
}

int64_t batch_norm_backward_workspace(const BatchNormBackward& a) {
  int64_t bytes = 0;
  visit_dtype(a.dtype,
              [&](auto type) { bytes = cuda::BatchNormKernels<typename decltype(type)::type>::backward_workspace(a); });
  return bytes;
}

void batch_norm_forward(const BatchNormForward& a) {
  const cuda::Path path = cuda::chosen_path();
  visit_dtype(a.dtype, [&](auto type) { cuda::BatchNormKernels<typename decltype(type)::type>::forward(a, path); });
}

void batch_norm_backward(const BatchNormBackward& a) {
  const cuda::Path path = cuda::chosen_path();
  visit_dtype(a.dtype, [&](auto type) { cuda::BatchNormKernels<typename decltype(type)::type>::backward(a, path); });
}

}  // namespace fusedtricks::backend

// Arguments of the kernels of batch_norm_act_max_pool2d: those of batch_norm_act, without y and dy, and the windows.
// Outputs and argmax have the memory layout of x.
#pragma once

#include "calls/batch_norm.h"
#include "core/pool_window.h"

namespace fusedtricks {

struct BatchNormPoolForward {
  BatchNormForward norm;
  MaxPool pool;
  void* y;
  uint8_t* argmax;

  FT_INLINE Layout outputs() const {
    return {norm.layout.samples, norm.layout.channels, pool.outputs(), norm.layout.channels_last};
  }
};

struct BatchNormPoolBackward {
  BatchNormBackward norm;
  MaxPool pool;
  const void* dy;
  const uint8_t* argmax;

  FT_INLINE Layout outputs() const {
    return {norm.layout.samples, norm.layout.channels, pool.outputs(), norm.layout.channels_last};
  }
};

namespace kernels {

inline const Kernel<int64_t(const BatchNormPoolForward&)> batch_norm_pool_forward_workspace{
    "batch_norm_pool_forward_workspace"};
inline const Kernel<int64_t(const BatchNormPoolBackward&)> batch_norm_pool_backward_workspace{
    "batch_norm_pool_backward_workspace"};
inline const Kernel<void(const BatchNormPoolForward&)> batch_norm_pool_forward{"batch_norm_pool_forward"};
inline const Kernel<void(const BatchNormPoolBackward&)> batch_norm_pool_backward{"batch_norm_pool_backward"};

}  // namespace kernels
}  // namespace fusedtricks

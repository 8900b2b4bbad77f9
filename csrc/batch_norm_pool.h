// What the kernels of batch_norm_act_max_pool2d are given: a call of batch_norm_act, whose y and dy are not there, and
// the windows. Outputs and argmax lie in memory as x does.
#pragma once

#include "batch_norm.h"
#include "max_pool.h"

namespace fusedtricks {

struct BatchNormPoolForward {
  BatchNormForward norm;
  MaxPool pool;
  void* y;
  uint8_t* argmax;

  FT_INLINE Layout outputs() const {
    return {norm.layout.samples, norm.layout.channels, pool.outputs(), norm.layout.rows};
  }
};

struct BatchNormPoolBackward {
  BatchNormBackward norm;
  MaxPool pool;
  const void* dy;
  const uint8_t* argmax;

  FT_INLINE Layout outputs() const {
    return {norm.layout.samples, norm.layout.channels, pool.outputs(), norm.layout.rows};
  }
};

namespace backend {

int64_t batch_norm_pool_forward_workspace(const BatchNormPoolForward& a);
int64_t batch_norm_pool_backward_workspace(const BatchNormPoolBackward& a);
void batch_norm_pool_forward(const BatchNormPoolForward& a);
void batch_norm_pool_backward(const BatchNormPoolBackward& a);

}  // namespace backend
}  // namespace fusedtricks

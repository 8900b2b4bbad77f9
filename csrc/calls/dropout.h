// Arguments of the kernels of dropout.
#pragma once

#include <c10/core/ScalarType.h>

#include "calls/kernel.h"
#include "core/layout.h"
#include "core/mask_source.h"

namespace fusedtricks {

struct DropoutCall {
  Layout layout;
  bool in_logical_order;  // whether memory has the order of the mask's words; otherwise the layout is channels_last
  c10::ScalarType dtype;
  MaskSource mask;
  const void* x;
  void* y;  // may be x

  int64_t numel() const { return layout.samples * layout.channels * layout.positions; }
};

namespace kernels {

// y = dropout(x) with this mask and rate, in the forward and in the backward.
inline const Kernel<void(const DropoutCall&)> dropout{"dropout"};

}  // namespace kernels
}  // namespace fusedtricks

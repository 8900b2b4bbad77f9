// What the kernels of dropout are given: raw memory.
#pragma once

#include <c10/core/ScalarType.h>

#include "calls/kernel.h"
#include "core/layout.h"
#include "core/mask_source.h"

namespace fusedtricks {

struct DropoutCall {
  Layout layout;
  bool in_logical_order;  // the elements lie in memory in the order that their random words are counted in
  c10::ScalarType dtype;
  MaskSource mask;
  const void* x;
  void* y;  // may be x

  int64_t numel() const { return layout.samples * layout.channels * layout.positions; }
};

namespace kernels {

// y = what the mask's rate makes of the kept and of the dropped elements of x. Forward and backward alike.
inline const Kernel<void(const DropoutCall&)> dropout{"dropout"};

}  // namespace kernels
}  // namespace fusedtricks

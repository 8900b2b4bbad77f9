// Arguments of the kernel that drops elements of a weight.
#pragma once

#include <c10/core/ScalarType.h>

#include "calls/kernel.h"
#include "core/mask_source.h"

namespace fusedtricks {

// Elements [first, first + count) of a contiguous weight.
struct DroppedBlockCall {
  c10::ScalarType dtype;
  MaskSource mask;  // recorded
  int64_t first, count;
  const void* weight;
  void* scratch;   // written: the dropout of these elements
  void* gradient;  // of the whole weight: these elements of it are dropped in place; may be null
};

namespace kernels {

// On the CPU only, and on the calling thread only; other devices drop the whole weight at once.
inline const Kernel<void(const DroppedBlockCall&)> drop_block{"drop_block"};

}  // namespace kernels
}  // namespace fusedtricks

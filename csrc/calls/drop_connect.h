// What the kernel of a dropped weight is given: raw memory.
#pragma once

#include <c10/core/ScalarType.h>

#include "calls/kernel.h"
#include "core/mask_source.h"

namespace fusedtricks {

// Some neighbouring elements of a contiguous weight.
struct DroppedBlockCall {
  c10::ScalarType dtype;
  MaskSource mask;  // recorded
  int64_t first, count;
  const void* weight;
  void* scratch;   // out: the block's elements, dropped
  void* gradient;  // of the whole weight, whose elements of the block are dropped in place; may be null
};

namespace kernels {

// On the CPU alone, for one thread: other devices drop the whole weight at once.
inline const Kernel<void(const DroppedBlockCall&)> drop_block{"drop_block"};

}  // namespace kernels
}  // namespace fusedtricks

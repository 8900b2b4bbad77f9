// What the kernels of dropout by groups of elements are given: raw memory.
#pragma once

#include <c10/core/ScalarType.h>

#include "calls/kernel.h"
#include "core/macros.h"
#include "core/mask_source.h"

namespace fusedtricks {

// Which word of the mask an element has, by its place in memory: groups of `outer` neighbouring elements have `inner`
// words, by turns. Channels of planes and samples: inner = 1; channels of rows: outer = a sample.
struct MaskGroups {
  int64_t outer, inner;

  FT_INLINE uint64_t word(int64_t i) const { return uint64_t(i / outer * inner + i % inner); }
};

struct FeatureDropoutCall {
  MaskGroups groups;
  int64_t numel;
  c10::ScalarType dtype;
  MaskSource mask;
  const void *x, *residual;  // residual may be null
  void* y;                   // may be x

  bool channels_innermost() const { return groups.inner > 1; }
};

namespace kernels {

// y = what the mask's rate makes of the kept and of the dropped groups of x [+ residual]. Forward and backward alike.
inline const Kernel<void(const FeatureDropoutCall&)> feature_dropout{"feature_dropout"};

}  // namespace kernels
}  // namespace fusedtricks

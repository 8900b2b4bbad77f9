// Arguments of the kernels that drop whole groups of elements: channels, samples or batches.
#pragma once

#include <c10/core/ScalarType.h>

#include "calls/kernel.h"
#include "core/macros.h"
#include "core/mask_source.h"

namespace fusedtricks {

// Which word of the mask element i in memory has. `outer` neighbouring elements share `inner` words, which they have in
// turn. inner is 1 if groups are contiguous. For the channels of a channels_last tensor outer is the size of a sample,
// and inner the number of channels.
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

// y = dropout(x) [+ residual] with this mask and rate, in the forward and in the backward.
inline const Kernel<void(const FeatureDropoutCall&)> feature_dropout{"feature_dropout"};

}  // namespace kernels
}  // namespace fusedtricks

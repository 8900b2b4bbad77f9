// What the kernels of dropout by groups of elements are given: raw memory.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>

#include "inline.h"
#include "philox.h"

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
  DropRate rate;
  const void *x, *residual;  // residual may be null
  void* y;                   // may be x

  bool by_rows() const { return groups.inner > 1; }
};

namespace backend {

// Draws a mask, from the seed or else from torch's generator, writes seed and offset to rng_state, two numbers on the
// tensor's device, and y = what becomes of x [+ residual].
void feature_dropout_forward(const FeatureDropoutCall& call, std::optional<int64_t> seed, int64_t* rng_state);
// The same with a mask that was drawn before.
void feature_dropout_backward(const FeatureDropoutCall& call, const int64_t* rng_state);

}  // namespace backend
}  // namespace fusedtricks

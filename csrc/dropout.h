// What the kernels of dropout are given: raw memory.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>

#include "layout.h"
#include "philox.h"

namespace fusedtricks {

struct DropoutCall {
  Layout layout;
  bool in_logical_order;  // the elements lie in memory in the order that their random words are counted in
  c10::ScalarType dtype;
  DropRate rate;
  const void* x;
  void* y;  // may be x

  int64_t numel() const { return layout.samples * layout.channels * layout.positions; }
};

namespace backend {

// Draws a mask, from the seed or else from torch's generator, writes seed and offset to rng_state, two
// numbers on the tensor's device, and y = x * mask * scale.
void dropout_forward(const DropoutCall& call, std::optional<int64_t> seed, int64_t* rng_state);
// y = x * the same mask * scale.
void dropout_backward(const DropoutCall& call, const int64_t* rng_state);

}  // namespace backend
}  // namespace fusedtricks

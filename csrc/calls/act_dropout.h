// What the kernels of dropout(act(x + bias)) + residual are given: raw memory.
#pragma once

#include <c10/core/ScalarType.h>

#include "calls/kernel.h"
#include "core/activation_functions.h"
#include "core/layout.h"
#include "core/mask_source.h"

namespace fusedtricks {

// Which value of a bias the element at a place in memory has: number (i / inner) % count. No bias: count = 0.
struct BiasPlaces {
  int64_t count = 0, inner = 1;

  FT_INLINE explicit operator bool() const { return count; }
};

// A tensor as these kernels walk over it. in_order: by memory, in which the mask's words are then counted, if there is
// a mask. Otherwise the layout is of rows, whose words are counted in logical order.
struct TailLayout {
  Layout layout;
  bool in_order;
  BiasPlaces places;
  c10::ScalarType dtype;

  int64_t numel() const { return layout.samples * layout.channels * layout.positions; }
};

struct ActDropoutForward {
  TailLayout tail;
  Activation act;
  MaskSource mask;                  // none where everything is kept
  const void *x, *bias, *residual;  // bias: in the compute type; it and the residual may be null
  void* y;
};

// What a backward is given of the forward.
enum class Kept {
  kNothing,  // the identity
  kInput,    // x
  kResult,   // y, scaled where it is kept: act' is read off y / scale
};

// dx or dbias may be null. Not everything is dropped: the gradients are then zero, whatever x is.
struct ActDropoutBackward {
  TailLayout tail;
  Activation act;
  MaskSource mask;  // none where what was dropped shows in act', or where nothing was; its rate holds all the same
  Kept kept;
  const void *dy, *saved, *bias;
  void *dx, *dbias;  // dbias: in the compute type
  void* workspace;   // of act_dropout_backward_workspace bytes
};

namespace kernels {

inline const Kernel<void(const ActDropoutForward&)> act_dropout_forward{"act_dropout_forward"};
inline const Kernel<int64_t(const ActDropoutBackward&)> act_dropout_backward_workspace{
    "act_dropout_backward_workspace"};
inline const Kernel<void(const ActDropoutBackward&)> act_dropout_backward{"act_dropout_backward"};

}  // namespace kernels
}  // namespace fusedtricks

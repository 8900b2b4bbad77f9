// Arguments of the kernels of dropout(act(x + bias)) + residual.
#pragma once

#include <c10/core/ScalarType.h>

#include "calls/kernel.h"
#include "core/activation_functions.h"
#include "core/layout.h"
#include "core/mask_source.h"

namespace fusedtricks {

// Element i in memory has value (i / inner) % count of the bias. Without a bias count is 0.
struct BiasPlaces {
  int64_t count = 0, inner = 1;

  FT_INLINE explicit operator bool() const { return count; }
};

// How the kernels walk over a tensor. in_order: in the order of memory, which is the order of the mask's words too, if
// there is a mask. Otherwise the layout is channels_last, and the mask's words are in logical order.
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
  MaskSource mask;                  // none if everything is kept
  const void *x, *bias, *residual;  // the bias is in the compute type; it and the residual may be null
  void* y;
};

// What the forward kept for the backward.
enum class Kept {
  kNothing,  // for the identity
  kInput,    // x
  kResult,   // y, where kept values are scaled: act' is read off y / scale
};

// dx or dbias may be null. Never called where everything is dropped: the operators fill the gradients with zeros.
struct ActDropoutBackward {
  TailLayout tail;
  Activation act;
  // None where nothing was dropped, or where act' is 0 for what was dropped; its rate is set even then.
  MaskSource mask;
  Kept kept;
  const void *dy, *saved, *bias;
  void *dx, *dbias;  // dbias is in the compute type
  void* workspace;   // of act_dropout_backward_workspace bytes
};

namespace kernels {

inline const Kernel<void(const ActDropoutForward&)> act_dropout_forward{"act_dropout_forward"};
inline const Kernel<int64_t(const ActDropoutBackward&)> act_dropout_backward_workspace{
    "act_dropout_backward_workspace"};
inline const Kernel<void(const ActDropoutBackward&)> act_dropout_backward{"act_dropout_backward"};

}  // namespace kernels
}  // namespace fusedtricks

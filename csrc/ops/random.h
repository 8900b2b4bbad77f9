// Where the random bits of a new call come from.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "core/mask_source.h"

namespace fusedtricks {

// A new mask: of the seed, or else of torch's generator of the device, which then moves on. Its kernel records it in
// rng_state, two int64 numbers on that device.
MaskSource draw_mask(const DropRate& rate, std::optional<int64_t> seed, const at::Tensor& rng_state);

// The mask that was recorded in rng_state, which is contiguous and outlives the call.
inline MaskSource recorded_mask(const DropRate& rate, const at::Tensor& rng_state) {
  MaskSource mask;
  mask.rate = rate;
  mask.recorded = rng_state.const_data_ptr<int64_t>();
  return mask;
}

// Of a call that drops nothing.
inline MaskSource no_mask(const DropRate& rate) {
  MaskSource mask;
  mask.rate = rate;
  return mask;
}

}  // namespace fusedtricks

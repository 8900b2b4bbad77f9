// The memory layout of a (N, C, *) tensor.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace fusedtricks {

// channels_last: N * S rows of C channels, so that neighbours are channels. Every (N, C) tensor is described so, too.
// Otherwise (NCHW): N samples of C planes of S positions, so that neighbours are positions.
struct Layout {
  int64_t samples, channels, positions;
  bool channels_last;

  FT_INLINE int64_t per_channel() const { return samples * positions; }
};

}  // namespace fusedtricks

// How a (N, C, *) tensor lies in memory, as the kernels see it.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace fusedtricks {

// Else: N samples of C planes of S positions each, a plane contiguous (NCHW).
// channels_last: N * S rows of C channels each, a row contiguous (every (N, C) tensor too).
struct Layout {
  int64_t samples, channels, positions;
  bool channels_last;

  FT_INLINE int64_t per_channel() const { return samples * positions; }
};

}  // namespace fusedtricks

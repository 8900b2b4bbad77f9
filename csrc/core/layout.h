// How a (N, C, *) tensor lies in memory, as the kernels see it.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace fusedtricks {

// planes: N samples of C planes of S positions each, a plane contiguous (NCHW).
// rows:   N * S rows of C channels each, a row contiguous (channels_last, and every (N, C) tensor).
struct Layout {
  int64_t samples, channels, positions;
  bool rows;

  FT_INLINE int64_t per_channel() const { return samples * positions; }
};

}  // namespace fusedtricks

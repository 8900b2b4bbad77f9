// Where the seed and the offset of a new mask come from.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace fusedtricks::cuda {

// Values, or while a CUDA graph is captured the places where every replay puts them.
struct RandomSource {
  uint64_t seed, offset;
  const int64_t *seed_at = nullptr, *offset_at = nullptr;

  FT_INLINE uint64_t get_seed() const { return seed_at ? uint64_t(*seed_at) : seed; }
  // While captured, `offset` is that of the call within the graph.
  FT_INLINE uint64_t get_offset() const { return offset_at ? uint64_t(*offset_at) + offset : offset; }
};

// From torch's generator of the current device, which moves on.
RandomSource draw_random_source();

}  // namespace fusedtricks::cuda

// Division of numbers that are not negative. It works in 32 bits if both numbers fit: a GPU has no instruction for
// division, and the 64-bit routine is several times as long.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace fusedtricks::cuda {

FT_INLINE int64_t quotient(int64_t a, int64_t by) {
  if ((a | by) >> 32 == 0) return int64_t(uint32_t(a) / uint32_t(by));
  return a / by;
}

// Quotient and remainder.
struct Division {
  int64_t quotient, remainder;

  FT_INLINE Division(int64_t a, int64_t by) {
    if ((a | by) >> 32 == 0) {
      quotient = uint32_t(a) / uint32_t(by);
      remainder = uint32_t(a) % uint32_t(by);
    } else {
      quotient = a / by;
      remainder = a % by;
    }
  }
};

}  // namespace fusedtricks::cuda

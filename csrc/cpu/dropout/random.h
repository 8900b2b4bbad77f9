// Where the seed of a new mask comes from.
#pragma once

#include <cstdint>

namespace fusedtricks::cpu {

// From torch's generator of the CPU, which moves on.
uint64_t draw_seed();

}  // namespace fusedtricks::cpu

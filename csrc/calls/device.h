// Kernels about a device itself.
#pragma once

#include "calls/kernel.h"
#include "core/mask_source.h"

namespace fusedtricks::kernels {

// The instruction set that a device's kernels were compiled for.
inline const Kernel<const char*()> instruction_set{"instruction_set"};
// Seed and offset of a new stream, taken from torch's generator of the current GPU, which is advanced. On CUDA only:
// the operators draw from the CPU's generator themselves.
inline const Kernel<RandomSource()> draw_random_source{"draw_random_source"};
// Reads the environment variables of this device's kernels again, which are otherwise read once, when the library is
// loaded. For tests. Only CUDA has such a variable: FUSEDTRICKS_CUDA_PATH.
inline const Kernel<void()> reload_settings{"reload_settings"};

}  // namespace fusedtricks::kernels

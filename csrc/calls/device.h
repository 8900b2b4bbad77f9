// What there is to know and to draw of a device.
#pragma once

#include "calls/kernel.h"
#include "core/mask_source.h"

namespace fusedtricks::kernels {

// The instruction set that a device's kernels were compiled for.
inline const Kernel<const char*()> instruction_set{"instruction_set"};
// Seed and offset of a new stream from torch's generator of the current GPU, which moves on. (That of the CPU needs no
// kernel.)
inline const Kernel<RandomSource()> draw_random_source{"draw_random_source"};
// Reads the environment variables of this device's kernels again; without it they are read once, when the library is
// loaded. For tests, between calls. Only CUDA has such variables (FUSEDTRICKS_CUDA_PATH).
inline const Kernel<void()> reload_settings{"reload_settings"};

}  // namespace fusedtricks::kernels

// Which kernels batch_norm_act takes.
#pragma once

#include <cstdint>

namespace fusedtricks::cuda {

// kTwo: two kernels each way. kHold: one, wherever a part of a channel can be held. kAuto: one where a block holds all
// of a group of channels, so that no blocks wait for each other, and there are blocks enough to keep the GPU busy.
enum class Path { kAuto, kTwo, kHold };

// What the environment variable FUSEDTRICKS_CUDA_PATH says now: auto, two or hold. ValueError for anything else.
Path chosen_path();

}  // namespace fusedtricks::cuda

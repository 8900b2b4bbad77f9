// Which kernels batch_norm_act uses.
#pragma once

#include <cstdint>

namespace fusedtricks::cuda {

// kTwo: two kernels each way. kPersistent: one kernel each way, which keeps its input in shared memory, wherever at
// least a part of a channel fits there. kAuto: one kernel where every block keeps all that it needs of its channels, so
// that no block waits for another, and where there are enough blocks to keep the GPU busy; else two.
enum class Path { kAuto, kTwo, kPersistent };

// What the environment variable FUSEDTRICKS_CUDA_PATH says: auto, two or hold (kPersistent). It is read when the
// library is loaded, and again by the kernel reload_settings. ValueError if it says anything else.
Path chosen_path();

}  // namespace fusedtricks::cuda

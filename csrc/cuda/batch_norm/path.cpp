#include "cuda/batch_norm/path.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <string_view>

fusedtricks::cuda::Path fusedtricks::cuda::chosen_path() {
  const char* value = std::getenv("FUSEDTRICKS_CUDA_PATH");
  const std::string_view name = value ? value : "auto";
  if (name == "auto") return Path::kAuto;
  if (name == "two") return Path::kTwo;
  TORCH_CHECK_VALUE(name == "hold", "FUSEDTRICKS_CUDA_PATH takes auto, two or hold, not '", name, "'");
  return Path::kHold;
}

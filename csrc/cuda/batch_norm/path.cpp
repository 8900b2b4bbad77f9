#include "cuda/batch_norm/path.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "calls/device.h"

namespace fusedtricks::cuda {
namespace {

constexpr const char* kVariable = "FUSEDTRICKS_CUDA_PATH";
constexpr int kUnknown = -1;

std::string_view variable() {
  const char* value = std::getenv(kVariable);
  return value ? value : "auto";
}

// A Path, or kUnknown.
int read_path() {
  const std::string_view name = variable();
  if (name == "auto") return int(Path::kAuto);
  if (name == "two") return int(Path::kTwo);
  return name == "hold" ? int(Path::kPersistent) : kUnknown;
}

std::atomic<int> path{read_path()};

void reload_settings() { path = read_path(); }

const Provided provided(kernels::reload_settings, reload_settings);

}  // namespace

Path chosen_path() {
  const int chosen = path.load(std::memory_order_relaxed);
  TORCH_CHECK_VALUE(chosen != kUnknown, kVariable, " takes auto, two or hold, not '", variable(), "'");
  return Path(chosen);
}

}  // namespace fusedtricks::cuda

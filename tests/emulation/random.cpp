// The emulated twin of what csrc/cuda/device.cpp asks torch's CUDA generator for: from the CPU's generator.
#include "../../csrc/cuda/random.h"

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

fusedtricks::cuda::RandomSource fusedtricks::cuda::draw_random_source() {
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  return {generator->random64(), 0};
}

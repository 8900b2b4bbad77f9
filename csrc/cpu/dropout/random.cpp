#include "cpu/dropout/random.h"

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

uint64_t fusedtricks::cpu::draw_seed() {
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  return generator->random64();
}

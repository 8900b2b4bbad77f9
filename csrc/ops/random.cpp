#include "ops/random.h"

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "calls/device.h"

namespace fusedtricks {
namespace {

RandomSource draw_on_cpu() {
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  RandomSource source;
  source.seed = generator->random64();
  return source;
}

RandomSource of_seed(int64_t seed) {
  RandomSource source;
  source.seed = uint64_t(seed);
  return source;
}

}  // namespace

MaskSource draw_mask(const DropRate& rate, std::optional<int64_t> seed, const at::Tensor& rng_state) {
  const auto device = rng_state.device().type();
  MaskSource mask;
  mask.rate = rate;
  mask.drawn = seed ? of_seed(*seed) : device == at::kCPU ? draw_on_cpu() : kernels::draw_random_source(device)();
  mask.record = rng_state.mutable_data_ptr<int64_t>();
  return mask;
}

}  // namespace fusedtricks

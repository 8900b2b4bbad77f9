// What the CUDA kernels need of PyTorch.
#include "device.h"

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <atomic>
#include <mutex>

#include "random.h"

namespace fusedtricks::cuda {
namespace {

constexpr int kMaxDevices = 64;

int device_number() {
  int device = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

int ask(cudaDeviceAttr attribute, int device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

}  // namespace

cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

void check_launch(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    const int device = device_number();
    TORCH_CHECK(false, "fusedtricks was built without code for this GPU, of compute capability ",
                ask(cudaDevAttrComputeCapabilityMajor, device), ".", ask(cudaDevAttrComputeCapabilityMinor, device),
                ": install it again with TORCH_CUDA_ARCH_LIST=", ask(cudaDevAttrComputeCapabilityMajor, device), ".",
                ask(cudaDevAttrComputeCapabilityMinor, device));
  }
  C10_CUDA_CHECK(error);
}

int multiprocessors() {
  static std::atomic<int> counts[kMaxDevices];  // 0: not asked yet
  const int device = device_number();
  int count = counts[device].load(std::memory_order_relaxed);
  if (!count) counts[device] = count = ask(cudaDevAttrMultiProcessorCount, device);
  return count;
}

RandomSource draw_random_source() {
  auto* generator =
      at::get_generator_or_default<at::CUDAGeneratorImpl>(std::nullopt, at::cuda::detail::getDefaultCUDAGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  const at::PhiloxCudaState state = generator->philox_cuda_state(/*increment=*/4);  // the least that it takes
  if (!state.captured_) return {state.seed_.val, state.offset_.val};
  return {0, state.offset_intragraph_, state.seed_.ptr, state.offset_.ptr};
}

}  // namespace fusedtricks::cuda

// What the CUDA kernels need of PyTorch.
#include "cuda/device/device.h"

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <atomic>
#include <mutex>

#include "cuda/device/random_source.h"

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

// An attribute of every device, asked for once.
class Attribute {
 public:
  explicit Attribute(cudaDeviceAttr attribute) : attribute_(attribute) {}

  int of_current_device() {
    const int device = device_number();
    if (device >= kMaxDevices) return ask(attribute_, device);
    int value = values_[device].load(std::memory_order_relaxed);  // 0: not asked yet
    if (!value) values_[device] = value = ask(attribute_, device);
    return value;
  }

 private:
  cudaDeviceAttr attribute_;
  std::atomic<int> values_[kMaxDevices] = {};
};

}  // namespace

cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

void check_launch(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion ||
      error == cudaErrorInvalidDeviceFunction) {
    const int device = device_number();
    TORCH_CHECK(false, "fusedtricks was built without code for this GPU, of compute capability ",
                ask(cudaDevAttrComputeCapabilityMajor, device), ".", ask(cudaDevAttrComputeCapabilityMinor, device),
                ": install it again with TORCH_CUDA_ARCH_LIST=", ask(cudaDevAttrComputeCapabilityMajor, device), ".",
                ask(cudaDevAttrComputeCapabilityMinor, device));
  }
  C10_CUDA_CHECK(error);
}

int multiprocessors() {
  static Attribute attribute(cudaDevAttrMultiProcessorCount);
  return attribute.of_current_device();
}

int64_t shared_memory_per_block(int blocks) {
  static Attribute of_block(cudaDevAttrMaxSharedMemoryPerBlockOptin), all(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  static Attribute reserved(cudaDevAttrReservedSharedMemoryPerBlock);
  return std::min(of_block.of_current_device(), all.of_current_device() / blocks - reserved.of_current_device());
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

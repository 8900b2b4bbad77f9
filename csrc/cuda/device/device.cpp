// Everything that the CUDA kernels need from the CUDA runtime and from PyTorch. This is the one file that the emulation
// in tests/emulation leaves out.
#include "cuda/device/device.h"

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <utility>

#include "calls/device.h"

namespace fusedtricks::cuda {
namespace {

constexpr int kMaxDevices = 64;

int current_device() {
  int device = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

int ask(cudaDeviceAttr attribute, int device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// An attribute that CUDA is asked for once per GPU.
class Attribute {
 public:
  explicit Attribute(cudaDeviceAttr attribute) : attribute_(attribute) {}

  int of_current_device() {
    const int device = current_device();
    if (device >= kMaxDevices) return ask(attribute_, device);
    int value = values_[device].load(std::memory_order_relaxed);  // 0: not asked yet
    if (!value) values_[device] = value = ask(attribute_, device);
    return value;
  }

 private:
  cudaDeviceAttr attribute_;
  std::atomic<int> values_[kMaxDevices] = {};
};

bool means_no_code_for_this_gpu(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion ||
         error == cudaErrorInvalidDeviceFunction;
}

RandomSource draw_random_source() {
  auto* generator =
      at::get_generator_or_default<at::CUDAGeneratorImpl>(std::nullopt, at::cuda::detail::getDefaultCUDAGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  // Every call has a stream of its own, so it only needs the smallest increment that the generator accepts.
  const at::PhiloxCudaState state = generator->philox_cuda_state(/*increment=*/4);
  RandomSource source;
  if (state.captured_) {
    source.offset = state.offset_intragraph_;
    source.seed_at = state.seed_.ptr;
    source.offset_at = state.offset_.ptr;
  } else {
    source.seed = state.seed_.val;
    source.offset = state.offset_.val;
  }
  return source;
}

const Provided provided(kernels::draw_random_source, draw_random_source);

}  // namespace

cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

void check_launch(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error, or the next CUDA call would report it again
  if (means_no_code_for_this_gpu(error)) {
    const int device = current_device();
    const int major = ask(cudaDevAttrComputeCapabilityMajor, device);
    const int minor = ask(cudaDevAttrComputeCapabilityMinor, device);
    TORCH_CHECK(false, "fusedtricks was built without code for this GPU, of compute capability ", major, ".", minor,
                ": install it again with TORCH_CUDA_ARCH_LIST=", major, ".", minor);
  }
  C10_CUDA_CHECK(error);
}

int multiprocessors() {
  static Attribute attribute(cudaDevAttrMultiProcessorCount);
  return attribute.of_current_device();
}

int64_t shared_memory_per_block(int blocks) {
  static Attribute of_block(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  static Attribute of_multiprocessor(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  static Attribute reserved(cudaDevAttrReservedSharedMemoryPerBlock);
  const int share = of_multiprocessor.of_current_device() / blocks - reserved.of_current_device();
  return std::min(of_block.of_current_device(), share);
}

void allow_large_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  const std::pair<const void*, int> key{kernel, current_device()};
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count(key)) return;
  check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    int(shared_memory_per_block(/*blocks=*/1))));
  allowed.insert(key);
}

}  // namespace fusedtricks::cuda

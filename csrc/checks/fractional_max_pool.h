// The checks of fractional max-pooling's arguments, and the layout that its tensors share.
#pragma once

#include <ATen/core/grad_mode.h>

#include "checks/arguments.h"

namespace fusedtricks {

// ValueError unless the activation is monotone, so that the maximum of the results is the result of the maximum.
inline Activation check_monotone(std::string_view name, at::ArrayRef<double> arguments) {
  const Activation act = check_activation(name, arguments);
  if (act.monotone()) return act;
  std::string takes, got;
  for (int i = 0; i < Activations<double>::count; ++i) {
    Activation other{i, {}};
    for (int p = 0; p < other.info().parameter_count(); ++p) other.parameters[p] = other.info().parameters[p].value;
    if (other.monotone()) takes += std::string(takes.empty() ? "" : ", ") + other.info().name;
  }
  for (int p = 0; p < act.info().parameter_count(); ++p) {
    got += (p ? ", " : "") + std::string(act.info().parameters[p].name) + "=" + c10::str(act.parameters[p]);
  }
  TORCH_CHECK_VALUE(false, "act: got ", act.info().name, "(", got, "), which may decrease where its argument ",
                    "increases; it takes one that never does: ", takes, ", with parameters that keep it so");
}

inline c10::SymInt product_of(at::ArrayRef<int64_t> sizes) {
  c10::SymInt product = 1;
  for (const int64_t size : sizes) product *= size;
  return product;
}

// RuntimeError unless the samples, where given, fit the input.
inline void check_pool_samples(const OptionalTensor& samples, const at::Tensor& input, int64_t rank) {
  if (!samples) return;
  check_device(*samples, input, "_random_samples");
  TORCH_CHECK(!samples->requires_grad() || !at::GradMode::is_enabled(),
              "_random_samples requires grad; it takes a tensor that does not");
  TORCH_CHECK(samples->scalar_type() == input.scalar_type(), "_random_samples has dtype ", samples->scalar_type(),
              "; it takes that of input, ", input.scalar_type());
  TORCH_CHECK(samples->dim() == 3 && samples->sym_size(0) >= input.sym_size(0) &&
                  samples->sym_size(1) == input.sym_size(1) && samples->sym_size(2) == rank,
              "_random_samples has shape ", samples->sym_sizes(), "; it takes (", input.sym_size(0), ", ",
              input.sym_size(1), ", ", rank, "), the batch, the channels and the pooled dimensions of input");
}

inline void check_kernel_size(at::IntArrayRef kernel_size) {
  TORCH_CHECK(kernel_size.size() == 2 || kernel_size.size() == 3, "kernel_size has ", kernel_size.size(),
              " lengths; it takes one for each pooled dimension, 2 or 3");
  for (const int64_t length : kernel_size) {
    TORCH_CHECK_VALUE(length > 0, "kernel_size must be greater than 0, but got ", kernel_size);
  }
}

// RuntimeError unless the windows fit the input, ValueError for a window of no places.
inline void check_fractional_max_pool(const at::Tensor& input, at::IntArrayRef kernel_size,
                                      c10::SymIntArrayRef output_size, const OptionalTensor& samples) {
  check_floating(input, "fractional_max_pool", "input");
  check_kernel_size(kernel_size);
  const int64_t rank = int64_t(kernel_size.size());
  TORCH_CHECK(input.dim() == rank + 2, "input has shape ", input.sym_sizes(), "; fractional_max_pool", rank, "d takes ",
              rank + 1, " or, with a batch, ", rank + 2, " dimensions");
  TORCH_CHECK(int64_t(output_size.size()) == rank, "output_size has ", output_size.size(), " lengths; it takes ", rank,
              ", one for each of kernel_size");
  TORCH_CHECK(input.sym_size(1) > 0, "input has shape ", input.sym_sizes(), "; it takes at least one channel");
  for (int64_t d = 0; d < rank; ++d) {
    const c10::SymInt length = input.sym_size(2 + d);
    // Stock's 3d form leaves out the largest of the sizes that fit.
    const c10::SymInt most = length - kernel_size[d] + (rank == 2 ? 1 : 0);
    TORCH_CHECK(output_size[d] > 0 && output_size[d] <= most, "output_size is ", output_size[d], " in dimension ",
                2 + d - input.dim(), ", where input has length ", length, " and the window ", kernel_size[d],
                "; it takes 1 to ", most);
    TORCH_CHECK(length < INT32_MAX, "input has length ", length, "; it takes less than 2^31");
  }
  TORCH_CHECK_VALUE(product_of(kernel_size) < INT32_MAX, "kernel_size is ", kernel_size,
                    "; it takes a window of fewer than 2^31 places");
  check_pool_samples(samples, input, rank);
}

// How many bytes a place in the window takes, as a dtype that every operator of torch knows.
inline c10::ScalarType place_dtype(at::IntArrayRef kernel_size) {
  const c10::SymInt places = product_of(kernel_size);
  return places <= 1 << 8 ? at::kByte : places <= 1 << 16 ? at::kShort : at::kInt;
}

// The memory format of all tensors of a call with that input.
inline at::MemoryFormat pool_format(const at::Tensor& input) {
  return input.is_contiguous() ? at::MemoryFormat::Contiguous : input.suggest_memory_format();
}

inline at::MemoryFormat pool_format(bool channels_last, int64_t dim) {
  if (!channels_last) return at::MemoryFormat::Contiguous;
  return dim == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
}

inline c10::SymDimVector with_batch_and_channels(const at::Tensor& t, c10::SymIntArrayRef sizes) {
  c10::SymDimVector shape{t.sym_size(0), t.sym_size(1)};
  shape.insert(shape.end(), sizes.begin(), sizes.end());
  return shape;
}

// RuntimeError unless a backward's tensors fit each other.
inline void check_pool_kept(const at::Tensor& argmax, const OptionalTensor& samples, const at::Tensor& rng_state,
                            c10::SymIntArrayRef input_size, at::IntArrayRef kernel_size) {
  check_kernel_size(kernel_size);
  const int64_t rank = int64_t(kernel_size.size());
  TORCH_CHECK(argmax.dim() == rank + 2 && argmax.scalar_type() == place_dtype(kernel_size), "argmax has shape ",
              argmax.sym_sizes(), " and dtype ", argmax.scalar_type(), "; it takes that of output and dtype ",
              place_dtype(kernel_size));
  TORCH_CHECK(int64_t(input_size.size()) == rank, "input_size has ", input_size.size(), " lengths; it takes ", rank);
  for (int64_t d = 0; d < rank; ++d) {
    TORCH_CHECK(argmax.sym_size(2 + d) <= input_size[d] - kernel_size[d] + 1, "argmax has shape ", argmax.sym_sizes(),
                "; its windows do not fit an input of ", input_size);
  }
  check_rng_state(rng_state, argmax);
  if (!samples) return;
  check_device(*samples, argmax, "_random_samples");
  TORCH_CHECK(samples->dim() == 3 && samples->sym_size(0) >= argmax.sym_size(0) &&
                  samples->sym_size(1) == argmax.sym_size(1) && samples->sym_size(2) == rank,
              "_random_samples has shape ", samples->sym_sizes(), "; argmax ", argmax.sym_sizes());
}

inline void check_pool_backward(const at::Tensor& grad_output, const OptionalTensor& output, const at::Tensor& argmax,
                                const Activation& act) {
  check_floating(grad_output, "fractional_max_pool_backward", "grad_output");
  check_device(grad_output, argmax, "grad_output");
  TORCH_CHECK(grad_output.sym_sizes() == argmax.sym_sizes(), "grad_output has shape ", grad_output.sym_sizes(),
              "; it takes that of argmax, ", argmax.sym_sizes());
  TORCH_CHECK(output || act.is_identity(), "output is needed for the derivative of ", act.info().name);
  if (output) check_like(*output, grad_output, "output", "grad_output");
}

}  // namespace fusedtricks

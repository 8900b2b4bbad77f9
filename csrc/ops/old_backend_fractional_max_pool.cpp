// Fractional max-pooling for the tensors of one backend.
#include "calls/fractional_max_pool.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "checks/fractional_max_pool.h"

namespace fusedtricks {
namespace {

using at::Tensor;

// The pooled dimensions in the last places, those before them of length 1.
void set_sizes(int64_t (&sizes)[kDimensions], at::IntArrayRef pooled) {
  for (int d = 0; d < kDimensions; ++d) {
    const int given = d - (kDimensions - int(pooled.size()));
    sizes[d] = given < 0 ? 1 : pooled[given];
  }
}

// Outlives the calls that it is asked for: it holds what they point to.
class Pooling {
 public:
  // model: a tensor of that batch and those channels, on the device.
  Pooling(const Tensor& model, at::IntArrayRef input, at::IntArrayRef output, at::IntArrayRef kernel,
          const OptionalTensor& samples, bool channels_last)
      : samples_(samples ? samples->contiguous() : Tensor()) {
    shape_.rank = int(kernel.size());
    shape_.batch = model.size(0);
    shape_.channels = model.size(1);
    set_sizes(shape_.input, input);
    set_sizes(shape_.output, output);
    set_sizes(shape_.kernel, kernel);
    shape_.rows = channels_last;
    options_ = model.options();
  }

  PoolCall call(c10::ScalarType dtype, const Activation& act, bool gradient) {
    const int64_t bytes = backend::fractional_max_pool_workspace(shape_, gradient);
    if (bytes) workspace_ = at::empty({bytes}, options_.dtype(at::kByte));
    PoolSamples samples{nullptr, dtype};
    if (samples_.defined()) samples = {samples_.const_data_ptr(), samples_.scalar_type()};
    return {shape_, samples, dtype, act, bytes ? workspace_.data_ptr() : nullptr};
  }

 private:
  PoolShape shape_;
  Tensor samples_, workspace_;
  at::TensorOptions options_;
};

bool is_channels_last(at::MemoryFormat format) { return format != at::MemoryFormat::Contiguous; }

std::tuple<Tensor, Tensor, Tensor> fractional_max_pool(const Tensor& input, at::IntArrayRef kernel_size,
                                                       c10::SymIntArrayRef output_size, const OptionalTensor& samples,
                                                       std::optional<int64_t> seed, c10::string_view act,
                                                       at::ArrayRef<double> act_args) {
  const Activation activation = check_monotone(act, act_args);
  check_fractional_max_pool(input, kernel_size, output_size, samples);
  const c10::DeviceGuard guard(input.device());
  const at::MemoryFormat format = pool_format(input);
  const auto sizes = C10_AS_INTARRAYREF_SLOW(output_size);
  std::vector<int64_t> shape{input.size(0), input.size(1)};
  shape.insert(shape.end(), sizes.begin(), sizes.end());
  const Tensor x = input.contiguous(format);
  const Tensor y = at::empty(shape, x.options(), format);
  const Tensor argmax = at::empty(shape, x.options().dtype(place_dtype(kernel_size)), format);
  const Tensor rng_state = at::empty({2}, x.options().dtype(at::kLong));
  Pooling pooling(x, x.sizes().slice(2), sizes, kernel_size, samples, is_channels_last(format));
  backend::fractional_max_pool_forward(pooling.call(x.scalar_type(), activation, false), seed, x.const_data_ptr(),
                                       y.data_ptr(), argmax.data_ptr(), rng_state.data_ptr<int64_t>());
  return {y, argmax, rng_state};
}

Tensor fractional_max_pool_backward(const Tensor& grad_output, const OptionalTensor& output, const Tensor& argmax,
                                    const OptionalTensor& samples, const Tensor& rng_state,
                                    c10::SymIntArrayRef input_size, at::IntArrayRef kernel_size, bool channels_last,
                                    c10::string_view act, at::ArrayRef<double> act_args) {
  const Activation activation = check_monotone(act, act_args);
  check_pool_kept(argmax, samples, rng_state, input_size, kernel_size);
  check_pool_backward(grad_output, output, argmax, activation);
  const c10::DeviceGuard guard(grad_output.device());
  const at::MemoryFormat format = pool_format(channels_last, grad_output.dim());
  const auto sizes = C10_AS_INTARRAYREF_SLOW(input_size);
  std::vector<int64_t> shape{argmax.size(0), argmax.size(1)};
  shape.insert(shape.end(), sizes.begin(), sizes.end());
  const Tensor dy = grad_output.contiguous(format), places = argmax.contiguous(format), state = rng_state.contiguous();
  const Tensor y = activation.is_identity() ? Tensor() : output->contiguous(format);
  const Tensor dx = at::empty(shape, dy.options(), format);
  Pooling pooling(dy, sizes, dy.sizes().slice(2), kernel_size, samples, channels_last);
  backend::fractional_max_pool_backward(pooling.call(dy.scalar_type(), activation, true), dy.const_data_ptr(),
                                        y.defined() ? y.const_data_ptr() : nullptr, places.const_data_ptr(),
                                        state.const_data_ptr<int64_t>(), dx.data_ptr());
  return dx;
}

Tensor fractional_max_pool_indices(const Tensor& argmax, const OptionalTensor& samples, const Tensor& rng_state,
                                   c10::SymIntArrayRef input_size, at::IntArrayRef kernel_size) {
  check_pool_kept(argmax, samples, rng_state, input_size, kernel_size);
  const c10::DeviceGuard guard(argmax.device());
  const at::MemoryFormat format = pool_format(argmax);
  const Tensor places = argmax.contiguous(format), state = rng_state.contiguous();
  const Tensor indices = at::empty(places.sizes(), places.options().dtype(at::kLong), format);
  Pooling pooling(places, C10_AS_INTARRAYREF_SLOW(input_size), places.sizes().slice(2), kernel_size, samples,
                  is_channels_last(format));
  backend::fractional_max_pool_indices(pooling.call(places.scalar_type(), Activation{}, false), places.const_data_ptr(),
                                       state.const_data_ptr<int64_t>(), indices.data_ptr<int64_t>());
  return indices;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, FUSEDTRICKS_BACKEND, m) {
  m.impl("fractional_max_pool", fractional_max_pool);
  m.impl("fractional_max_pool_backward", fractional_max_pool_backward);
  m.impl("fractional_max_pool_indices", fractional_max_pool_indices);
}

}  // namespace fusedtricks

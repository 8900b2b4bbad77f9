// The arguments' checks, shared by every backend. Each names the argument, what it got and what it takes, and raises
// the class that stock PyTorch raises for the same mistake. They run before anything is written.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "core/activation_functions.h"
#include "core/pool_window.h"
#include "core/philox.h"

namespace fusedtricks {

using OptionalTensor = std::optional<at::Tensor>;

// The activation of that name with its parameters; ValueError where there is none.
inline Activation check_activation(std::string_view name, at::ArrayRef<double> arguments) {
  const int index = find_activation(name);
  if (index < 0) {
    std::string known;
    for (const auto* info : Activations<double>::info) known += std::string(known.empty() ? "" : ", ") + info->name;
    TORCH_CHECK_VALUE(false, "act: unknown activation '", std::string(name), "'; known are: ", known);
  }
  Activation act{index, {}};
  const int count = act.info().parameter_count();
  TORCH_CHECK_VALUE(int64_t(arguments.size()) == count, "act_args: ", act.info().name, " takes ", count,
                    " parameters, got ", arguments.size());
  for (int i = 0; i < count; ++i) act.parameters[i] = arguments[i];
  return act;
}

// NotImplementedError unless float, double, bfloat16 or half.
inline void check_floating(const at::Tensor& t, const char* op, const char* name) {
  const auto type = t.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf,
                              op, ": ", name, " of dtype ", type,
                              " is not supported; it takes float32, float64, bfloat16 or float16");
}

inline void check_device(const at::Tensor& t, const at::Tensor& input, const char* name) {
  TORCH_CHECK(t.device() == input.device(), name, " is on device ", t.device(), ", input on ", input.device(),
              "; they must be on one device");
}

// RuntimeError unless t has model's shape, dtype and device.
inline void check_like(const at::Tensor& t, const at::Tensor& model, const char* name, const char* model_name) {
  check_device(t, model, name);
  TORCH_CHECK(t.sym_sizes() == model.sym_sizes(), name, " has shape ", t.sym_sizes(), "; it takes that of ", model_name,
              ", ", model.sym_sizes());
  TORCH_CHECK(t.scalar_type() == model.scalar_type(), name, " has dtype ", t.scalar_type(), "; it takes that of ",
              model_name, ", ", model.scalar_type());
}

// RuntimeError unless t, where given, holds one value per channel in a dtype that goes with the input's.
inline void check_per_channel(const OptionalTensor& t, const at::Tensor& input, const char* name) {
  if (!t) return;
  check_device(*t, input, name);
  TORCH_CHECK(t->dim() == 1 && t->sym_size(0) == input.sym_size(1), name, " should contain ", input.sym_size(1),
              " elements, one per channel of input; got shape ", t->sym_sizes());
  const auto type = input.scalar_type();
  const bool reduced = type == at::kBFloat16 || type == at::kHalf;
  TORCH_CHECK(t->scalar_type() == type || (reduced && t->scalar_type() == at::kFloat), name, " has dtype ",
              t->scalar_type(), "; with input of dtype ", type, " it takes ", type, reduced ? " or Float" : "");
}

// ValueError unless 0 <= p <= 1.
inline void check_probability(double p) {
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, "dropout probability p has to be between 0 and 1, but got ", p);
}

// The mode of that name; ValueError where there is none.
inline DropMode check_drop_mode(std::string_view mode) {
  if (mode == "inverted") return DropMode::kInverted;
  if (mode == "classic") return DropMode::kClassic;
  TORCH_CHECK_VALUE(mode == "alpha", "mode has to be 'inverted', 'classic' or 'alpha', but got '", std::string(mode),
                    "'");
  return DropMode::kAlpha;
}

// What becomes of a tensor's values; ValueError unless 0 <= p <= 1 and the mode is known.
inline DropRate check_dropout(double p, std::string_view mode) {
  check_probability(p);
  return DropRate::make(p, check_drop_mode(mode));
}

// The same where the first mask_dims dimensions have a mask of their own, of one value each.
inline DropRate check_feature_dropout(const at::Tensor& input, const OptionalTensor& residual, int64_t mask_dims,
                                      double p, std::string_view mode) {
  check_floating(input, "feature_dropout", "input");
  TORCH_CHECK_VALUE(0 <= mask_dims && mask_dims <= 2, "mask_dims has to be 0 (one value), 1 (a value per sample) or ",
                    "2 (a value per channel), but got ", mask_dims);
  TORCH_CHECK(mask_dims <= input.dim(), "input has ", input.dim(), " dimensions; it takes at least ", mask_dims);
  if (residual) check_like(*residual, input, "residual", "input");
  return check_dropout(p, mode);
}

// RuntimeError unless rng_state is an int64 tensor of two elements on grad's device.
inline void check_rng_state(const at::Tensor& rng_state, const at::Tensor& grad) {
  check_device(rng_state, grad, "rng_state");
  TORCH_CHECK(rng_state.dim() == 1 && rng_state.sym_size(0) == 2 && rng_state.scalar_type() == at::kLong,
              "rng_state takes an int64 tensor of two elements, seed and offset");
}

// RuntimeError unless bias, where given, has a value per index of input's last dimension, (F), or per channel,
// (C, 1, ...) with as many dimensions as a sample.
inline void check_bias(const OptionalTensor& bias, const at::Tensor& input) {
  if (!bias) return;
  check_device(*bias, input, "bias");
  const bool of_last = bias->dim() == 1 && input.dim() >= 1 && bias->sym_size(0) == input.sym_size(-1);
  bool of_channels = bias->dim() > 1 && bias->dim() == input.dim() - 1 && bias->sym_size(0) == input.sym_size(1);
  for (int64_t d = 1; d < bias->dim(); ++d) of_channels = of_channels && bias->sym_size(d) == 1;
  TORCH_CHECK(of_last || of_channels, "bias has shape ", bias->sym_sizes(), "; with input of shape ", input.sym_sizes(),
              " it takes (", input.dim() ? input.sym_size(-1) : c10::SymInt(1), ",) for the last dimension",
              input.dim() > 2 ? " or (C, 1, ...) for the channels" : "");
  const auto type = input.scalar_type();
  const bool reduced = type == at::kBFloat16 || type == at::kHalf;
  TORCH_CHECK(bias->scalar_type() == type || (reduced && bias->scalar_type() == at::kFloat), "bias has dtype ",
              bias->scalar_type(), "; with input of dtype ", type, " it takes ", type, reduced ? " or Float" : "");
}

inline DropRate check_act_dropout(const at::Tensor& input, const OptionalTensor& bias, const OptionalTensor& residual,
                                  double p) {
  check_floating(input, "act_dropout", "input");
  check_bias(bias, input);
  if (residual) check_like(*residual, input, "residual", "input");
  return check_dropout(p, "inverted");
}

// RuntimeError unless a backward's tensors fit the gradient that it is given.
inline DropRate check_act_dropout_backward(const at::Tensor& grad_output, const OptionalTensor& input,
                                           const OptionalTensor& output, const OptionalTensor& bias,
                                           const OptionalTensor& rng_state, const Activation& act, double p,
                                           std::array<bool, 2> output_mask) {
  check_floating(grad_output, "act_dropout_backward", "grad_output");
  if (input) check_like(*input, grad_output, "input", "grad_output");
  if (output) check_like(*output, grad_output, "output", "grad_output");
  if (rng_state) check_rng_state(*rng_state, grad_output);
  check_bias(bias, grad_output);
  TORCH_CHECK(input || output || act.is_identity(), "act_dropout_backward: ", act.info().name,
              " takes input, or output where the derivative can be read off it");
  TORCH_CHECK(!output_mask[1] || bias, "act_dropout_backward: a gradient of bias takes bias");
  return check_dropout(p, "inverted");
}

struct BatchNormArguments {
  const at::Tensor& input;
  const OptionalTensor &running_mean, &running_var, &num_batches_tracked, &weight, &bias, &residual;
  bool training;
  std::optional<double> momentum;
  double eps;
};

inline void check_running_statistics(const BatchNormArguments& a) {
  TORCH_CHECK_VALUE(a.running_mean.has_value() == a.running_var.has_value() || !a.training,
                    "running_mean and running_var must either both be None or neither be None");
  TORCH_CHECK(a.training || a.running_mean, "running_mean must be defined in evaluation mode");
  TORCH_CHECK(a.training || a.running_var, "running_var must be defined in evaluation mode");
  check_per_channel(a.running_mean, a.input, "running_mean");
  check_per_channel(a.running_var, a.input, "running_var");
  if (!a.training || !a.running_mean) return;
  if (a.momentum) {
    TORCH_CHECK_VALUE(*a.momentum >= 0 && *a.momentum <= 1, "momentum has to be between 0 and 1, or None for a ",
                      "cumulative average, but got ", *a.momentum);
  } else {
    TORCH_CHECK_VALUE(a.num_batches_tracked, "momentum=None (a cumulative average) needs num_batches_tracked");
  }
  if (a.num_batches_tracked) {
    const at::Tensor& count = *a.num_batches_tracked;
    check_device(count, a.input, "num_batches_tracked");
    TORCH_CHECK(count.dim() == 0 && count.scalar_type() == at::kLong, "num_batches_tracked has shape ",
                count.sym_sizes(), " and dtype ", count.scalar_type(), "; it takes a scalar of dtype Long");
  }
}

inline void check_batch_norm(const BatchNormArguments& a) {
  const at::Tensor& x = a.input;
  check_floating(x, "batch_norm_act", "input");
  TORCH_CHECK_INDEX(x.dim() >= 2, "input has ", x.dim(), " dimensions; it takes at least 2, (N, C) or (N, C, *)");
  check_per_channel(a.weight, x, "weight");
  check_per_channel(a.bias, x, "bias");
  if (a.residual) check_like(*a.residual, x, "residual", "input");
  check_running_statistics(a);
  TORCH_CHECK_VALUE(a.eps >= 0, "batch_norm eps must be non-negative, but got ", a.eps);
  if (!a.training) return;
  TORCH_CHECK_VALUE(a.eps > 0, "batch_norm eps must be positive during training, but got ", a.eps);
  c10::SymInt per_channel = x.sym_size(0);
  for (int64_t d = 2; d < x.dim(); ++d) per_channel *= x.sym_size(d);
  TORCH_CHECK_VALUE(per_channel != 1, "Expected more than 1 value per channel when training, got input size ",
                    x.sym_sizes());
}

// RuntimeError unless both hold one float64 value per channel.
inline void check_saved_statistics(const at::Tensor& input, const at::Tensor& save_mean, const at::Tensor& save_rstd) {
  for (const at::Tensor* t : {&save_mean, &save_rstd}) {
    const char* name = t == &save_mean ? "save_mean" : "save_rstd";
    check_device(*t, input, name);
    TORCH_CHECK(t->dim() == 1 && t->sym_size(0) == input.sym_size(1) && t->scalar_type() == at::kDouble, name,
                " takes one float64 value per channel of input");
  }
}

// RuntimeError unless a backward's tensors fit the input they belong to.
inline void check_batch_norm_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                      const OptionalTensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& residual, const OptionalTensor& output,
                                      const at::Tensor& save_mean, const at::Tensor& save_rstd) {
  check_floating(input, "batch_norm_act_backward", "input");
  check_like(grad_output, input, "grad_output", "input");
  check_per_channel(weight, input, "weight");
  check_per_channel(bias, input, "bias");
  if (residual) check_like(*residual, input, "residual", "input");
  if (output) check_like(*output, input, "output", "input");
  check_saved_statistics(input, save_mean, save_rstd);
}

// The windows of max-pooling, two numbers each: of rows and of columns.
struct MaxPoolArguments {
  at::IntArrayRef kernel_size, stride, padding, dilation;
  bool ceil_mode;
};

// How many windows there are along an axis of that size; below 1 where it is too small for one.
template <class Size>
Size pooled_size(const Size& size, const MaxPoolArguments& a, int axis) {
  const int64_t stride = a.stride[axis], padding = a.padding[axis];
  const Size room = size + 2 * padding - a.dilation[axis] * (a.kernel_size[axis] - 1) - 1;
  if (room < 0) return Size(0);
  Size count = (room + (a.ceil_mode ? stride - 1 : 0)) / stride + 1;
  // The last one has to start inside the image or the padding before it.
  if (a.ceil_mode && (count - 1) * stride >= size + padding) count = count - 1;
  return count;
}

// ValueError unless input is an image; RuntimeError unless it has windows, of as many places as a byte tells apart,
// each of them with an element.
inline void check_max_pool(const at::Tensor& input, const MaxPoolArguments& a) {
  TORCH_CHECK_VALUE(input.dim() == 4, "input has ", input.dim(), " dimensions; it takes 4, (N, C, H, W)");
  for (int64_t d = 1; d < 4; ++d) {
    TORCH_CHECK(input.sym_size(d) != 0, "input has shape ", input.sym_sizes(), "; only its first size may be 0");
  }
  const auto check_pair = [](at::IntArrayRef pair, const char* name, int64_t least) {
    TORCH_CHECK(pair.size() == 2 && pair[0] >= least && pair[1] >= least, name, " takes two integers of at least ",
                least, ", got ", pair);
  };
  check_pair(a.kernel_size, "kernel_size", 1);
  check_pair(a.stride, "stride", 1);
  check_pair(a.padding, "padding", 0);
  check_pair(a.dilation, "dilation", 1);
  for (int axis = 0; axis < 2; ++axis) {
    TORCH_CHECK(2 * a.padding[axis] <= a.kernel_size[axis], "padding ", a.padding,
                " takes at most half of kernel_size, ", a.kernel_size);
    const c10::SymInt size = input.sym_size(2 + axis);
    TORCH_CHECK(pooled_size(size, a, axis) >= 1, "kernel_size ", a.kernel_size, " with padding ", a.padding,
                " and dilation ", a.dilation, " does not fit into an input of shape ", input.sym_sizes());
    TORCH_CHECK(a.padding[axis] == 0 || a.dilation[axis] <= size, "dilation ", a.dilation,
                " with padding takes at most the size of the image, ", input.sym_sizes());
  }
  TORCH_CHECK(a.kernel_size[0] <= kMaxPlaces && a.kernel_size[1] <= kMaxPlaces / a.kernel_size[0], "kernel_size ",
              a.kernel_size, " takes at most ", kMaxPlaces, " places");
}

// RuntimeError unless a backward's tensors are those of the outputs that its input has.
inline void check_max_pool_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& argmax,
                                    const MaxPoolArguments& a) {
  check_max_pool(input, a);
  for (const at::Tensor* t : {&grad_output, &argmax}) {
    const char* name = t == &grad_output ? "grad_output" : "argmax";
    check_device(*t, input, name);
    const auto type = t == &grad_output ? input.scalar_type() : at::kByte;
    TORCH_CHECK(t->scalar_type() == type, name, " has dtype ", t->scalar_type(), "; it takes ", type);
    bool fits = t->dim() == 4 && t->sym_size(0) == input.sym_size(0) && t->sym_size(1) == input.sym_size(1);
    for (int axis = 0; fits && axis < 2; ++axis) {
      fits = t->sym_size(2 + axis) == pooled_size(input.sym_size(2 + axis), a, axis);
    }
    TORCH_CHECK(fits, name, " has shape ", t->sym_sizes(), "; it takes that of the output of an input of shape ",
                input.sym_sizes());
  }
}

// ValueError where a result behind dropout was kept that does not tell the activation's derivative.
inline void check_kept_behind_dropout(const Activation& act, const OptionalTensor& output) {
  TORCH_CHECK_VALUE(!output || act.is_relu(), "output: after dropout that of ", act.info().name,
                    " does not tell its derivative; it takes none, and the residual");
}

inline void check_batch_norm_pool_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                           const OptionalTensor& weight, const OptionalTensor& bias,
                                           const at::Tensor& argmax, const at::Tensor& save_mean,
                                           const at::Tensor& save_rstd, const MaxPoolArguments& windows) {
  check_floating(input, "batch_norm_act_max_pool2d_backward", "input");
  check_max_pool_backward(grad_output, input, argmax, windows);
  check_per_channel(weight, input, "weight");
  check_per_channel(bias, input, "bias");
  check_saved_statistics(input, save_mean, save_rstd);
}

// RuntimeError unless matrices that a linear layer multiplies.
inline void check_dropped_linear(const at::Tensor& input, const at::Tensor& weight, double p) {
  check_floating(input, "dropped_linear", "input");
  check_probability(p);
  check_device(weight, input, "weight");
  TORCH_CHECK(input.dim() == 2 && weight.dim() == 2 && input.sym_size(1) == weight.sym_size(1), "input has shape ",
              input.sym_sizes(), ", weight ", weight.sym_sizes(), "; they take two matrices of as many columns");
  TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "weight has dtype ", weight.scalar_type(),
              "; it takes that of input, ", input.scalar_type());
}

// IndexError unless a batch of samples, NotImplementedError for its dtype.
inline void check_samples(const at::Tensor& t, const char* op, const char* name) {
  check_floating(t, op, name);
  TORCH_CHECK_INDEX(t.dim() >= 1, name, " has no dimensions; it takes at least 1, (N, *)");
}

inline void check_sample_index(const at::Tensor& index, const at::Tensor& input) {
  check_device(index, input, "index");
  const auto type = index.scalar_type();
  TORCH_CHECK(index.dim() == 1 && (type == at::kLong || type == at::kInt), "index has shape ", index.sym_sizes(),
              " and dtype ", type, "; it takes one dimension of dtype Long or Int");
}

// RuntimeError unless rows holds a sample like those of input for every element of index.
inline void check_sample_rows(const at::Tensor& rows, const at::Tensor& index, const at::Tensor& input) {
  check_device(rows, input, "rows");
  TORCH_CHECK(rows.dim() == input.dim() && rows.sym_size(0) == index.sym_size(0) &&
                  rows.sym_sizes().slice(1) == input.sym_sizes().slice(1),
              "rows has shape ", rows.sym_sizes(), "; with index of length ", index.sym_size(0),
              " it takes so many samples like those of shape ", input.sym_sizes().slice(1));
  TORCH_CHECK(rows.scalar_type() == input.scalar_type(), "rows has dtype ", rows.scalar_type(),
              "; it takes that of input, ", input.scalar_type());
}

}  // namespace fusedtricks

// The checks of batch_norm_act_max_pool2d.
#pragma once

#include "checks/batch_norm.h"
#include "core/pool_window.h"

namespace fusedtricks {

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

template <class Op>
void check_batch_norm_pool_backward(const Op& a) {
  check_floating(a.input, "batch_norm_act_max_pool2d_backward", "input");
  check_max_pool_backward(a.grad_output, a.input, a.argmax, a.windows());
  check_per_channel(a.weight, a.input, "weight");
  check_per_channel(a.bias, a.input, "bias");
  check_saved_statistics(a.input, a.save_mean, a.save_rstd);
}

}  // namespace fusedtricks

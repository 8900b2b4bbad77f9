// Tensors around kernels: the layouts that the kernels take, outputs that are laid out so, raw pointers.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "core/drop_rate.h"
#include "core/layout.h"

namespace fusedtricks {

// Dense with the channels innermost: channels_last, channels_last_3d, and (N, L, C) seen as (N, C, L).
inline bool is_channels_innermost(const at::Tensor& t) {
  switch (t.dim()) {
    case 4:
      return t.is_contiguous(at::MemoryFormat::ChannelsLast);
    case 5:
      return t.is_contiguous(at::MemoryFormat::ChannelsLast3d);
    default:
      return t.dim() > 2 && t.movedim(1, -1).is_contiguous();
  }
}

// Whether the kernels take t as it is.
inline bool is_kernel_layout(const at::Tensor& t) { return t.is_contiguous() || is_channels_innermost(t); }

// Whether t has the very strides that a new tensor of its sizes would have. A size of 1 can have any stride otherwise.
inline bool has_default_strides(const at::Tensor& t) {
  if (t.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) return false;
  int64_t expected = 1;
  for (int64_t d = t.dim(); d-- > 0; expected *= t.size(d)) {
    if (t.stride(d) != expected || t.size(d) == 0) return false;
  }
  return true;
}

// An uninitialised tensor like t, with t's strides where the kernels take them: what an operator returns.
inline at::Tensor empty_in_kernel_layout(const at::Tensor& t) {
  if (has_default_strides(t)) return at::empty(t.sizes(), t.options());  // what empty_like does, in half the time
  at::Tensor like = at::empty_like(t);
  return is_kernel_layout(like) ? like : at::empty_like(t, t.options(), at::MemoryFormat::Contiguous);
}

// t itself where it lies in memory as model does (a dense tensor of its shape in kernel layout), else a copy that does.
inline at::Tensor laid_out_like(const at::Tensor& t, const at::Tensor& model) {
  const bool same = model.is_contiguous() ? t.is_contiguous() : is_channels_innermost(t);
  return same ? t : at::empty_like(model, t.options()).copy_(t);
}

// Room for a mask's seed and offset.
inline at::Tensor new_rng_state(const at::Tensor& input, int64_t size = 2) {
  return at::empty({size}, input.options().dtype(at::kLong));
}

// Whether what an operator makes of t has the channels innermost.
inline bool wants_channels_innermost(const at::Tensor& t) {
  if (t.is_contiguous()) return false;
  return is_channels_innermost(t) || t.suggest_memory_format() != at::MemoryFormat::Contiguous;
}

// An uninitialised tensor of so many samples like those of t, in t's layout where the kernels take that.
inline at::Tensor empty_samples_like(const at::Tensor& t, c10::SymInt samples) {
  auto sizes = t.sym_sizes().vec();
  sizes[0] = std::move(samples);
  if (!wants_channels_innermost(t)) return at::empty_symint(sizes, t.options());
  std::rotate(sizes.begin() + 1, sizes.begin() + 2, sizes.end());
  return at::empty_symint(sizes, t.options()).movedim(-1, 1);
}

inline c10::SymInt product_of_sizes(const at::Tensor& t, int64_t from, int64_t to) {
  c10::SymInt product = 1;
  for (int64_t d = from; d < to; ++d) product *= t.sym_size(d);
  return product;
}

// (N, C, *) as (N, C, positions). By reshape, which takes the batched gradients of torch.autograd's vectorize=True too.
inline at::Tensor positions_in_one(const at::Tensor& t) {
  return t.reshape_symint({t.sym_size(0), t.sym_size(1), product_of_sizes(t, 2, t.dim())});
}

// How an image tensor of four dimensions is taken, and what is pooled of it laid out.
inline at::MemoryFormat image_format(const at::Tensor& t) {
  if (!is_kernel_layout(t)) return image_format(empty_in_kernel_layout(t));
  const bool last = t.is_contiguous(at::MemoryFormat::ChannelsLast);
  const bool either = last && t.is_contiguous();
  const auto of_strides = either ? t.suggest_memory_format() : at::MemoryFormat::ChannelsLast;
  return last && of_strides == at::MemoryFormat::ChannelsLast ? of_strides : at::MemoryFormat::Contiguous;
}

// As the kernels see a dense tensor (N, C, *) in kernel layout.
inline Layout layout_of(const at::Tensor& dense) {
  const int64_t samples = dense.size(0), channels = dense.size(1);
  int64_t positions = 1;
  for (int64_t d = 2; d < dense.dim(); ++d) positions *= dense.size(d);
  return {samples, channels, positions, positions == 1 || !dense.is_contiguous()};
}

inline const void* data_or_null(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

inline at::Tensor or_undefined(const std::optional<at::Tensor>& t) { return t ? *t : at::Tensor(); }
inline std::optional<at::Tensor> or_none(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}
// t laid out as model is; undefined where there is none.
inline at::Tensor optional_laid_out_like(const std::optional<at::Tensor>& t, const at::Tensor& model) {
  return t ? laid_out_like(*t, model) : at::Tensor();
}

// Memory for a kernel's own use; an undefined tensor where it needs none.
inline at::Tensor workspace(int64_t bytes, const at::Tensor& like) {
  return bytes ? at::empty({bytes}, like.options().dtype(at::kByte)) : at::Tensor();
}

// A tensor and what is added to it, in the wider of their dtypes: that of stock's sum.
inline std::pair<at::Tensor, std::optional<at::Tensor>> to_wider(const at::Tensor& t,
                                                                 const std::optional<at::Tensor>& added) {
  if (!added) return {t, added};
  const auto type = c10::promoteTypes(t.scalar_type(), added->scalar_type());
  return {t.to(type), added->to(type)};
}

}  // namespace fusedtricks

// Layouts of tensors: which ones the kernels take, and how one that they do not take is brought into such a one.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "core/layout.h"
#include "core/philox.h"

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

// An uninitialised tensor like t, with t's strides where the kernels take them: what an operator returns.
inline at::Tensor empty_in_kernel_layout(const at::Tensor& t) {
  at::Tensor like = at::empty_like(t);
  return is_kernel_layout(like) ? like : at::empty_like(t, t.options(), at::MemoryFormat::Contiguous);
}

// t itself where it lies in memory as model does (a dense tensor of its shape in kernel layout), else a copy that does.
inline at::Tensor laid_out_like(const at::Tensor& t, const at::Tensor& model) {
  const bool same = model.is_contiguous() ? t.is_contiguous() : is_channels_innermost(t);
  return same ? t : at::empty_like(model, t.options()).copy_(t);
}

// Room for a mask's seed and offset, of no elements where all is kept.
inline at::Tensor empty_rng_state(const at::Tensor& input, const DropRate& rate) {
  return at::empty({rate.keeps_all() ? 0 : 2}, input.options().dtype(at::kLong));
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

// How an image tensor of four dimensions is taken, and what is pooled of it laid out.
inline at::MemoryFormat image_format(const at::Tensor& t) {
  if (!is_kernel_layout(t)) return image_format(empty_in_kernel_layout(t));
  const bool last = t.is_contiguous(at::MemoryFormat::ChannelsLast);
  const bool either = last && t.is_contiguous();
  const auto of_strides = either ? t.suggest_memory_format() : at::MemoryFormat::ChannelsLast;
  return last && of_strides == at::MemoryFormat::ChannelsLast ? of_strides : at::MemoryFormat::Contiguous;
}

inline Layout layout_of(const at::Tensor& dense) {
  const int64_t samples = dense.size(0), channels = dense.size(1);
  int64_t positions = 1;
  for (int64_t d = 2; d < dense.dim(); ++d) positions *= dense.size(d);
  return {samples, channels, positions, positions == 1 || !dense.is_contiguous()};
}

}  // namespace fusedtricks

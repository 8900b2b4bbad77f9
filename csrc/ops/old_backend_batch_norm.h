// From tensors to what the kernels of the BatchNorms are given.
#pragma once

#include "calls/batch_norm.h"

#include <ATen/ops/empty.h>

#include "checks/checks.h"

namespace fusedtricks {

inline ChannelValues channel_values(const at::Tensor& t) {
  if (!t.defined()) return {};
  return {t.data_ptr(), t.scalar_type(), t.stride(0)};
}

inline ChannelValues channel_values(const OptionalTensor& t) { return t ? channel_values(*t) : ChannelValues{}; }

// Memory for the backend's own use; an undefined tensor where it needs none.
inline at::Tensor workspace(int64_t bytes, const at::Tensor& like) {
  return bytes ? at::empty({bytes}, like.options().dtype(at::kByte)) : at::Tensor();
}

}  // namespace fusedtricks

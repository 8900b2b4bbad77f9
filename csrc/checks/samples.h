// The checks of what moves whole samples of a batch.
#pragma once

#include "checks/arguments.h"

namespace fusedtricks {

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

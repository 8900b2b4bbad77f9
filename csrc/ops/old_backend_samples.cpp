// Whole samples of a batch, taken out and added, for the tensors of one backend.
#include "calls/samples.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "checks/checks.h"
#include "ops/tensor_layout.h"

namespace fusedtricks {
namespace {

using at::Tensor;

// t itself where its samples lie in memory as model's do (dense, in kernel layout), else a copy whose do.
Tensor with_samples_like(const Tensor& t, const Tensor& model) {
  const bool same = model.is_contiguous() ? t.is_contiguous() : is_channels_innermost(t);
  return same ? t : empty_samples_like(model, t.size(0)).copy_(t);
}

// rows: the chosen samples; batch: all of them.
SamplesCall call_for(const Tensor& rows, const Tensor& batch, const Tensor& index, double scale) {
  const int64_t samples = batch.size(0);
  int64_t elements = 1;
  for (int64_t d = 1; d < batch.dim(); ++d) elements *= batch.size(d);
  return {batch.scalar_type(), samples, elements, rows.size(0), index.const_data_ptr<int64_t>(), scale};
}

Tensor as_numbers(const Tensor& index) { return index.to(at::kLong).contiguous(); }

Tensor add(const OptionalTensor& base, const Tensor& rows, const Tensor& index, double scale, const Tensor& out) {
  const Tensor table = at::empty({out.size(0)}, index.options().dtype(at::kLong)), numbers = as_numbers(index);
  const Tensor r = with_samples_like(rows, out), x = base ? laid_out_like(*base, out) : Tensor();
  backend::add_samples(call_for(r, out, numbers, scale), base ? x.const_data_ptr() : nullptr, r.const_data_ptr(),
                       table.data_ptr<int64_t>(), out.data_ptr());
  return out;
}

Tensor add_samples(const Tensor& input, const Tensor& rows, const Tensor& index, double scale) {
  check_samples(input, "add_samples", "input");
  check_sample_index(index, input);
  check_sample_rows(rows, index, input);
  const c10::DeviceGuard guard(input.device());
  return add(input, rows, index, scale, empty_in_kernel_layout(input));
}

Tensor place_samples(const Tensor& rows, const Tensor& index, int64_t samples, double scale) {
  check_samples(rows, "place_samples", "rows");
  check_sample_index(index, rows);
  check_sample_rows(rows, index, rows);
  const c10::DeviceGuard guard(rows.device());
  return add({}, rows, index, scale, empty_samples_like(rows, samples));
}

Tensor select_samples(const Tensor& input, const Tensor& index, double scale) {
  check_samples(input, "select_samples", "input");
  check_sample_index(index, input);
  const c10::DeviceGuard guard(input.device());
  const Tensor out = empty_samples_like(input, index.size(0)), numbers = as_numbers(index);
  const Tensor x = with_samples_like(input, out);
  backend::select_samples(call_for(out, x, numbers, scale), x.const_data_ptr(), out.data_ptr());
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, FUSEDTRICKS_BACKEND, m) {
  m.impl("add_samples", add_samples);
  m.impl("place_samples", place_samples);
  m.impl("select_samples", select_samples);
}

}  // namespace fusedtricks

// Whole samples of a batch, taken out and added. Each operator is linear, and the backward of one is another. The index
// is kept, and no tensor of the batch's size.
#include "calls/samples.h"

#include <ATen/ops/alias.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include "checks/samples.h"
#include "ops/grad_node.h"
#include "ops/python.h"
#include "ops/tensors.h"

namespace fusedtricks {
namespace {

// t itself where its samples lie in memory as model's do (dense, in kernel layout), else a copy whose do.
Tensor with_samples_like(const Tensor& t, const Tensor& model) {
  const bool same = model.is_contiguous() ? t.is_contiguous() : is_channels_innermost(t);
  return same ? t : empty_samples_like(model, t.size(0)).copy_(t);
}

// rows: the chosen samples; batch: all of them.
SamplesCall call_for(const Tensor& rows, const Tensor& batch, const Tensor& index, double scale) {
  int64_t elements = 1;
  for (int64_t d = 1; d < batch.dim(); ++d) elements *= batch.size(d);
  return {batch.scalar_type(), batch.size(0), elements, rows.size(0), index.const_data_ptr<int64_t>(), scale};
}

Tensor as_numbers(const Tensor& index) { return index.to(at::kLong).contiguous(); }

// out = base, or zeros, with scale * rows added to the samples of the index.
Tensor add_to(const OptionalTensor& base, const Tensor& rows, const Tensor& index, double scale, const Tensor& out) {
  const c10::DeviceGuard guard(rows.device());
  const Tensor table = at::empty({out.size(0)}, index.options().dtype(at::kLong)), numbers = as_numbers(index);
  const Tensor r = with_samples_like(rows, out), x = base ? laid_out_like(*base, out) : Tensor();
  kernels::add_samples(out.device().type())(call_for(r, out, numbers, scale), data_or_null(x), r.const_data_ptr(),
                                            table.data_ptr<int64_t>(), out.data_ptr());
  return out;
}

struct SamplesAttributes {
  double scale = 1;
  c10::SymInt samples = 0;  // of the batch, symbolic where a graph for any size is traced

  auto values() const { return std::tie(scale, samples); }
};

// scale * input[index].
struct SelectSamplesOp {
  static constexpr const char* schema = "select_samples(Tensor input, Tensor index, float scale) -> Tensor";
  using Results = Tensor;
  const Tensor &input, &index;
  double scale;

  using Attributes = SamplesAttributes;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(input); }

  Tensor run() const {
    check_samples(input, "select_samples", "input");
    check_sample_index(index, input);
    const Tensor out = empty_samples_like(input, index.sym_size(0));
    if (out.is_meta()) return out;
    const c10::DeviceGuard guard(input.device());
    const Tensor x = with_samples_like(input, out), numbers = as_numbers(index);
    kernels::select_samples(out.device().type())(call_for(out, x, numbers, scale), x.const_data_ptr(), out.data_ptr());
    return out;
  }
  Tensor record() const {
    const Gradient<SelectSamplesOp> gradient(*this);
    gradient->attributes = {scale, input.sym_size(0)};
    const Tensor result = call_below(*this);
    gradient.keep(0, index);
    gradient.of(result);
    return result;
  }
  static Tensors differentiate(const Recorded<SelectSamplesOp>& node, const Tensors& grads, const Tensors& kept);
};

// As many samples of zeros, with scale * rows[j] in place of sample index[j].
struct PlaceSamplesOp {
  static constexpr const char* schema =
      "place_samples(Tensor rows, Tensor index, SymInt samples, float scale) -> Tensor";
  using Results = Tensor;
  const Tensor &rows, &index;
  c10::SymInt samples;
  double scale;

  using Attributes = SamplesAttributes;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(rows); }

  Tensor run() const {
    check_samples(rows, "place_samples", "rows");
    check_sample_index(index, rows);
    check_sample_rows(rows, index, rows);
    const Tensor out = empty_samples_like(rows, samples);
    return out.is_meta() ? out : add_to({}, rows, index, scale, out);
  }
  Tensor record() const {
    const Gradient<PlaceSamplesOp> gradient(*this);
    gradient->attributes = {scale, samples};
    const Tensor result = call_below(*this);
    gradient.keep(0, index);
    gradient.of(result);
    return result;
  }
  static Tensors differentiate(const Recorded<PlaceSamplesOp>& node, const Tensors& grads, const Tensors& kept) {
    return {call(SelectSamplesOp{grads[0], kept[0], node.attributes.scale})};
  }
};

Tensors SelectSamplesOp::differentiate(const Recorded<SelectSamplesOp>& node, const Tensors& grads,
                                       const Tensors& kept) {
  return {call(PlaceSamplesOp{grads[0], kept[0], node.attributes.samples, node.attributes.scale})};
}

// input, with scale * rows[j] added to its sample index[j].
struct AddSamplesOp {
  static constexpr const char* schema = "add_samples(Tensor input, Tensor rows, Tensor index, float scale) -> Tensor";
  using Results = Tensor;
  const Tensor &input, &rows, &index;
  double scale;

  using Attributes = SamplesAttributes;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(input, rows); }

  Tensor run() const {
    check_samples(input, "add_samples", "input");
    check_sample_index(index, input);
    check_sample_rows(rows, index, input);
    const Tensor out = empty_in_kernel_layout(input);
    return out.is_meta() ? out : add_to(input, rows, index, scale, out);
  }
  Tensor record() const {
    const Gradient<AddSamplesOp> gradient(*this);
    gradient->attributes = {scale, 0};
    const Tensor result = call_below(*this);
    gradient.keep(0, index);
    gradient.of(result);
    return result;
  }
  static Tensors differentiate(const Recorded<AddSamplesOp>& node, const Tensors& grads, const Tensors& kept) {
    Tensors out(2);
    if (node.wants(0)) out[0] = grads[0];
    if (node.wants(1)) out[1] = call(SelectSamplesOp{grads[0], kept[0], node.attributes.scale});
    return out;
  }
};

// input[index], and input itself; backward adds the gradient of the one to that of the other in one pass.
struct BranchSamplesOp {
  static constexpr const char* schema =
      "branch_samples(Tensor(a) input, Tensor index) -> (Tensor rows, Tensor(a) skip)";
  static constexpr bool composite = true;
  using Results = std::tuple<Tensor, Tensor>;
  const Tensor &input, &index;

  using Attributes = SamplesAttributes;
  static constexpr int kKept = 1;
  auto differentiable() const { return std::tie(input); }

  Results run() const {
    if (!records(*this)) return {call(SelectSamplesOp{input, index, 1}), at::alias(input)};
    const Gradient<BranchSamplesOp> gradient(*this);
    gradient->attributes = {1, input.sym_size(0)};
    const auto [rows, skip] = [&]() -> Results {
      const at::AutoDispatchBelowADInplaceOrView below;
      return {call(SelectSamplesOp{input, index, 1}), at::alias(input)};
    }();
    gradient.keep(0, index);
    gradient.of(rows);
    gradient.of(skip);
    return {rows, skip};
  }
  static Tensors differentiate(const Recorded<BranchSamplesOp>& node, const Tensors& grads, const Tensors& kept) {
    const Tensor &rows = grads[0], &skip = grads[1], &index = kept[0];
    if (!rows.defined()) return {skip};
    if (skip.defined()) return {call(AddSamplesOp{skip, rows, index, 1})};
    return {call(PlaceSamplesOp{rows, index, node.attributes.samples, 1})};
  }
};

const Operators<AddSamplesOp, SelectSamplesOp, PlaceSamplesOp, BranchSamplesOp> operators;

// add_samples(input, rows, index, scale)
PyObject* python_add_samples(PythonArguments& arguments) {
  const Tensor &input = arguments.tensor(), &rows = arguments.tensor(), &index = arguments.tensor_of_any_dtype();
  const double scale = arguments.number();
  if (!arguments.fit()) return nullptr;
  return arguments.released([&] { return call(AddSamplesOp{input, rows, index, scale}); });
}

// select_samples(input, index)
PyObject* python_select_samples(PythonArguments& arguments) {
  const Tensor &input = arguments.tensor(), &index = arguments.tensor_of_any_dtype();
  if (!arguments.fit()) return nullptr;
  return arguments.released([&] { return call(SelectSamplesOp{input, index, 1}); });
}

// branch_samples(input, index): the rows and the skip connection.
PyObject* python_branch_samples(PythonArguments& arguments) {
  const Tensor &input = arguments.tensor(), &index = arguments.tensor_of_any_dtype();
  if (!arguments.fit()) return nullptr;
  Tensor skip;
  PyObject* rows = arguments.released([&] {
    auto results = dispatch(BranchSamplesOp{input, index});
    skip = std::get<1>(results);
    return std::get<0>(results);
  });
  return pair_to_python(rows, std::move(skip));
}

const PythonFunction functions[] = {
    PythonFunction::of<python_add_samples>("add_samples"),
    PythonFunction::of<python_select_samples>("select_samples"),
    PythonFunction::of<python_branch_samples>("branch_samples"),
};

}  // namespace
}  // namespace fusedtricks

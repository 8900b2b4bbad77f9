// torch.cat, whose result is joined again in the backward instead of being kept, while a thread is recomputing.
#include <ATen/ops/cat.h>
#include <ATen/ops/narrow.h>

#include "ops/grad_node.h"
#include "ops/python.h"

namespace fusedtricks {
namespace {

struct CatAttributes {
  int64_t dim;
  std::vector<int64_t> sizes;  // of the tensors in that dimension

  auto values() const { return std::tie(dim, sizes); }
};

struct CatOp {
  static constexpr const char* schema = "cat(Tensor[] tensors, int dim) -> Tensor";
  const Tensors& tensors;
  int64_t dim;

  using Attributes = CatAttributes;
  static constexpr int kKept = 0;
  const Tensors& differentiable() const { return tensors; }

  Tensor record() const {
    const Gradient<CatOp> gradient(*this);
    CatAttributes& attributes = gradient->attributes;
    attributes.dim = dim;
    for (const Tensor& t : tensors) attributes.sizes.push_back(t.size(dim));
    const Tensor result = [&] {
      const at::AutoDispatchBelowADInplaceOrView below;
      return at::cat(tensors, dim);
    }();
    gradient.of(result);
    if (keeps_more_than(result)) return result;
    const auto join = [dim = dim](Tensors sources) {
      sources.pop_back();  // of the residual
      return at::cat(sources, dim);
    };
    gradient->set_recipe(recipe_for(result, tensors, /*residual=*/{}, join));
    return result;
  }

  // Whether the tensors' memory, which a recipe would keep, is more than the result's.
  bool keeps_more_than(const Tensor& result) const {
    size_t bytes = 0;
    for (const Tensor& t : tensors) {
      if (!recipe_of(t) && !Recomputing::active()->is_kept(t)) bytes += t.storage().nbytes();
    }
    return bytes > result.storage().nbytes();
  }

  static Tensors differentiate(const Recorded<CatOp>& node, const Tensors& grads, const Tensors& /*kept*/) {
    const auto& [dim, sizes] = node.attributes;
    Tensors results(sizes.size());
    int64_t start = 0;
    for (size_t i = 0; i < sizes.size(); start += sizes[i++]) {
      if (node.wants(i)) results[i] = grads[0].narrow(dim, start, sizes[i]);
    }
    return results;
  }
};

// Whether our node is as good as stock's: for dense tensors of one dtype and as many dimensions.
bool is_ordinary(const Tensors& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const Tensor& t) {
    const Tensor& first = tensors.front();
    return (is_plain(t) || t.is_meta()) && may_have_recipe(t) && t.layout() == at::kStrided &&
           t.scalar_type() == first.scalar_type() && t.dim() == first.dim() && t.device() == first.device() && t.dim();
  });
}

// cat(tensors, dim); None unless this thread is recomputing and a gradient is to be recorded.
PyObject* python_cat(PythonArguments& arguments) {
  const Tensors tensors = arguments.tensors();
  const int64_t given = arguments.integer();
  if (!arguments.fit() || tensors.empty() || !Recomputing::active() || !at::GradMode::is_enabled()) return nullptr;
  const int64_t rank = tensors.front().dim(), dim = given < 0 ? given + rank : given;
  const bool records = std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.requires_grad(); });
  if (!records || !is_ordinary(tensors) || dim < 0 || dim >= rank) return nullptr;
  return arguments.released([&] { return CatOp{tensors, dim}.record(); });
}

const PythonFunction functions[] = {PythonFunction::of<python_cat>("cat")};

}  // namespace
}  // namespace fusedtricks

#include "ops/gradients.h"

#include <ATen/ops/alias.h>

#include "ops/python.h"

namespace fusedtricks {

Tensors gradients_of(const Tensors& outputs, const Tensors& inputs, const Tensors& grads, bool create_graph) {
  Tensors wanted, used_outputs, used_grads;
  for (const auto& t : inputs) {
    if (t.defined()) wanted.push_back(t);
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].defined() || !grads[i].defined() || !outputs[i].requires_grad()) continue;
    used_outputs.push_back(outputs[i]);
    used_grads.push_back(grads[i]);
  }
  Tensors found(wanted.size());
  if (!used_outputs.empty() && !wanted.empty()) {
    const WithoutGilIfHeld released;
    found = torch::autograd::grad(used_outputs, wanted, used_grads, /*retain_graph=*/true, create_graph,
                                  /*allow_unused=*/true);
  }
  Tensors result;
  size_t next = 0;
  for (const auto& t : inputs) result.push_back(t.defined() ? found[next++] : Tensor());
  return result;
}

Tensor as_variable(const Tensor& t) {
  if (!t.defined()) return t;
  return t.requires_grad() ? at::alias(t) : t.detach().requires_grad_();
}

}  // namespace fusedtricks

// Nodes of the autograd graph. They derive from torch::autograd::Node, as PyTorch's generated ones do, because the
// bookkeeping of torch::autograd::Function takes longer than a small kernel.
//
// An operator's record() makes one:
//   const Gradient<DropoutOp> gradient(*this);  // connected to differentiable()
//   gradient->attributes = {p, ...};
//   const auto [output, rng_state] = call_below(*this);
//   gradient.keep(0, rng_state);
//   gradient.of(output);  // output's gradient comes from this node
// The operator's struct says what the node keeps and does:
//   using Attributes = ...;
//   static constexpr int kKept = 1;  // tensors
//   static Tensors differentiate(const GradNode<DropoutOp>& node, const Tensors& grads, const Tensors& kept);
#pragma once

#include <torch/csrc/autograd/autograd.h>

#include <array>
#include <mutex>

#include "ops/operator.h"

namespace fusedtricks {

using Tensors = torch::autograd::variable_list;
using torch::autograd::SavedVariable;

inline torch::autograd::Edge edge_to(const Tensor& t) {
  return t.defined() ? torch::autograd::impl::gradient_edge(t) : torch::autograd::Edge();
}
inline torch::autograd::Edge edge_to(const OptionalTensor& t) { return t ? edge_to(*t) : torch::autograd::Edge(); }

template <class Op>
class GradNode final : public torch::autograd::Node {
 public:
  std::array<SavedVariable, Op::kKept> kept;
  typename Op::Attributes attributes;

  std::string name() const override {
    const std::string operator_name = qualified_name<Op>();
    return operator_name.substr(operator_name.rfind(':') + 1) + "_gradient";
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& saved : kept) saved.reset_data();
  }

  // Whether the gradient of an input is needed, by its number in differentiable().
  bool wants(size_t input) const { return task_should_compute_output(input); }

  Tensors apply(Tensors&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!std::any_of(grads.begin(), grads.end(), [](const Tensor& grad) { return grad.defined(); })) {
      return Tensors(num_outputs());
    }
    Tensors tensors;
    tensors.reserve(kept.size());
    for (const auto& saved : kept) tensors.push_back(saved.unpack(getptr()));
    return Op::differentiate(*this, grads, tensors);
  }
};

// A node under construction. (Since torch 2.12 pointers to nodes are intrusive.)
template <class Op>
class Gradient {
 public:
  explicit Gradient(const Op& op) : node_(new GradNode<Op>()), owner_(own<Owner>(node_)) {
    torch::autograd::edge_list edges;
    std::apply([&](const auto&... input) { edges = {edge_to(input)...}; }, op.differentiable());
    node_->set_next_edges(std::move(edges));
  }

  GradNode<Op>* operator->() const { return node_; }

  // Keeps an input of the call, or a tensor without a gradient.
  void keep(size_t place, const Tensor& t) const { node_->kept[place] = SavedVariable(t, /*is_output=*/false); }
  // Keeps a result of the call; only after of(result).
  void keep_result(size_t place, const Tensor& t, bool is_view = false) const {
    node_->kept[place] = SavedVariable(t, /*is_output=*/true, is_view);
  }
  void of(const Tensor& result) const { torch::autograd::set_history(result, owner_); }
  // The same for an input that was overwritten.
  void of_changed(const Tensor& input) const { torch::autograd::rebase_history(input, owner_); }

 private:
  using Owner = decltype(torch::autograd::Edge::function);

  template <class Pointer>
  static Pointer own(GradNode<Op>* node) {
    if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
      return Pointer(node, [](auto* each) { deleteNode(each); });
    } else {
      return Pointer::unsafe_steal_from_new(node);
    }
  }

  GradNode<Op>* node_;
  Owner owner_;
};

}  // namespace fusedtricks

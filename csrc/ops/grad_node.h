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
//   using Attributes = ...;  // known to for_each_attribute
//   static constexpr int kKept = 1;  // tensors
//   static Tensors differentiate(const Recorded<DropoutOp>& node, const Tensors& grads, const Tensors& kept);
// differentiate calls differentiable operators, so that gradients of any order follow from it.
#pragma once

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <mutex>

#include "ops/attributes.h"
#include "ops/one_thread.h"
#include "ops/operator.h"
#include "ops/recompute.h"

namespace fusedtricks {

using Tensors = torch::autograd::variable_list;
using torch::autograd::SavedVariable;

inline torch::autograd::Edge edge_to(const Tensor& t) {
  return t.defined() ? torch::autograd::impl::gradient_edge(t) : torch::autograd::Edge();
}
inline torch::autograd::Edge edge_to(const OptionalTensor& t) { return t ? edge_to(*t) : torch::autograd::Edge(); }

// A tensor of inference mode cannot be kept, a copy of it can: where stock would not keep it at all.
inline Tensor savable(const Tensor& t) {
  return t.defined() && t.is_inference() && !c10::InferenceMode::is_enabled() ? t.clone() : t;
}

// What a call recorded, besides tensors, and which gradients are asked for: of the node that the engine runs, or of a
// node that was compiled into a graph.
template <class Op>
class Recorded {
 public:
  const typename Op::Attributes& attributes;

  explicit Recorded(const typename Op::Attributes& recorded, const torch::autograd::Node* running)
      : attributes(recorded), running_(running) {}
  explicit Recorded(const typename Op::Attributes& recorded, const std::vector<bool>& wanted)
      : attributes(recorded), wanted_(&wanted) {}

  // Whether the gradient of an input is needed, by its number in differentiable().
  bool wants(size_t input) const { return running_ ? running_->task_should_compute_output(input) : (*wanted_)[input]; }
  size_t inputs() const { return running_ ? running_->num_outputs() : wanted_->size(); }

 private:
  const torch::autograd::Node* running_ = nullptr;
  const std::vector<bool>* wanted_ = nullptr;
};

template <class Op>
class GradNode final : public torch::autograd::Node, public MakesOutput {
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
    set_recipe(nullptr);
  }

  Tensors apply(Tensors&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return differentiate(Recorded<Op>(attributes, this), grads, unpacked());
  }

  // For compiled autograd: what a compiled graph with this node depends on.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(name());
    for_each_attribute([&](const auto& value) { args.collect(value); }, attributes);
    for (const auto& saved : kept) args.collect(saved, /*is_output=*/true);  // unpacked with this node, as in apply
  }

  // For compiled autograd: puts a call of this node's function into the graph. The attributes are part of the function.
  Tensors apply_with_saved(const Tensors& grads, torch::dynamo::autograd::SwapSavedVariables& swap) override {
    for (auto& saved : kept) swap.before(saved);
    std::vector<bool> wanted, is_kept;
    for (size_t i = 0; i < next_edges().size(); ++i) wanted.push_back(task_should_compute_output(i));
    std::vector<c10::IValue> tensors;
    for (const Tensor& t : unpacked()) {
      is_kept.push_back(t.defined());
      if (t.defined()) tensors.emplace_back(t);
    }
    const auto function = [attributes = attributes, wanted, is_kept](const Tensors& inputs,
                                                                     const std::vector<c10::IValue>& saved) {
      Tensors all;
      for (size_t i = 0, next = 0; i < is_kept.size(); ++i) {
        all.push_back(is_kept[i] ? saved[next++].toTensor() : Tensor());
      }
      return differentiate(Recorded<Op>(attributes, wanted), inputs, all);
    };
    using namespace torch::dynamo::autograd;
    const auto& compiler = getPyCompilerInterface();
    const auto bound = compiler->bind_function(swap.get_py_compiler(), name(), function,
                                               std::vector<at::TypePtr>(tensors.size(), at::TensorType::get()),
                                               /*is_custom_function=*/true, /*is_traceable=*/true);
    const auto metadata = IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
        get_input_metadata(next_edges()));
    Tensors results =
        compiler->call_function(swap.get_py_compiler(), "apply_functional", bound, grads, tensors, metadata);
    for (auto& saved : kept) swap.after(saved);
    return results;
  }

 private:
  Tensors unpacked() {
    Tensors tensors;
    tensors.reserve(kept.size());
    for (const auto& saved : kept) tensors.push_back(saved.unpack(getptr()));
    return tensors;
  }

  static Tensors differentiate(const Recorded<Op>& node, const Tensors& grads, const Tensors& kept) {
    if (!std::any_of(grads.begin(), grads.end(), [](const Tensor& grad) { return grad.defined(); })) {
      return Tensors(node.inputs());
    }
    const OneThreadIfForked one_thread;
    for (const Tensors* tensors : {&grads, &kept}) {
      for (const Tensor& t : *tensors) check_no_tangent(t);
    }
    const bool all_dense = std::none_of(grads.begin(), grads.end(), is_sparse);
    return Op::differentiate(node, all_dense ? grads : in_dense_layout(grads), kept);
  }

  static bool is_sparse(const Tensor& grad) { return grad.defined() && grad.layout() != at::kStrided; }

  // Gradients of sparse embeddings, for example.
  static Tensors in_dense_layout(Tensors grads) {
    for (Tensor& grad : grads) {
      if (is_sparse(grad)) grad = grad.to_dense();
    }
    return grads;
  }
};

// A node under construction. (Since torch 2.12 pointers to nodes are intrusive.)
template <class Op>
class Gradient {
 public:
  explicit Gradient(const Op& op) : node_(new GradNode<Op>()), owner_(own<Owner>(node_)) {
    torch::autograd::edge_list edges;
    if constexpr (std::is_same_v<decltype(op.differentiable()), const Tensors&>) {
      for (const Tensor& input : op.differentiable()) edges.push_back(edge_to(input));
    } else {
      std::apply([&](const auto&... input) { edges = {edge_to(input)...}; }, op.differentiable());
    }
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

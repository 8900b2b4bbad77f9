// Outputs that are computed again in the backward instead of being kept for it.
//
// What a fused layer keeps for its own backward determines its output. So while a thread is recomputing, the node of
// such a layer has a Recipe, and whoever saves the output for a backward gets a SavedTensor that holds the recipe
// instead of the tensor. A recipe holds what it computes from as SavedTensors too, which may be recipes in their turn;
// it holds no nodes, so that there are no cycles, and it works for as long as somebody needs it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>
#include <torch/csrc/autograd/autograd.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace fusedtricks {

using at::Tensor;
using Tensors = torch::autograd::variable_list;

class Recipe;

// One of those who will ask for a recipe's result.
class Use {
 public:
  Use() = default;
  // Nothing where the recipe has been discarded.
  explicit Use(std::shared_ptr<Recipe> recipe);
  Use(Use&& other) noexcept = default;
  Use& operator=(Use&& other) noexcept;
  ~Use();

  Tensor get() const;
  explicit operator bool() const { return bool(recipe_); }
  const Recipe& recipe() const { return *recipe_; }

 private:
  std::shared_ptr<Recipe> recipe_;
  friend class Recipe;
  mutable int served_in_ = -1;  // the recipe's round in which it last asked
};

// Where in a storage a tensor lies.
struct Geometry {
  std::vector<int64_t> sizes, strides;
  int64_t offset = 0;

  explicit Geometry(const Tensor& t);
  Tensor of(const Tensor& t) const;
};

// How often a tensor had been written to when it was kept. It shares the count, and holds nothing else of the tensor.
class Version {
 public:
  explicit Version(const Tensor& t);
  bool is_current() const { return !counter_.enabled() || counter_.current_version() == version_; }
  // Torch's own RuntimeError if it was written to since.
  void check(const at::TensorOptions& options, at::IntArrayRef sizes) const;
  const c10::VariableVersion& counter() const { return counter_; }

 private:
  c10::VariableVersion counter_;
  uint32_t version_;
};

// What is kept of a tensor for a backward: the tensor, or else a recipe.
class SavedTensor {
 public:
  SavedTensor() = default;
  explicit SavedTensor(const Tensor& t);

  // RuntimeError, as torch's, if the tensor was written to since.
  Tensor get() const;

  bool is_recipe() const { return bool(recipe_); }
  // Of the recipe; 0 without one.
  int length() const;
  // The tensors that are kept for it: itself, or all that the recipe computes from, which may be kept by others too.
  Tensors kept_tensors() const;
  // Why the tensor is kept.
  const std::string& reason() const { return reason_; }

 private:
  std::shared_ptr<const Tensor> tensor_;
  std::optional<Version> version_;
  Use recipe_;
  std::optional<Geometry> geometry_;  // of a view of the recipe's result
  std::string reason_;
};

// How a tensor is computed from others that are kept. It is computed once for all who ask, and held until the last of
// them has; then the next round begins, for another backward through the same graph.
//
// Its lock is never held while anything is computed or freed: either may need the GIL, and threads with the GIL take
// the lock. get() may wait for another thread that computes, so it is called without the GIL.
class Recipe {
 public:
  using Compute = std::function<Tensor(const Tensors& sources)>;

  // Of `result`, which has just been computed from the sources, through so many residual joints.
  Recipe(const Tensor& result, int joints, std::vector<SavedTensor> sources, Compute compute);

  int joints() const { return joints_; }
  // How many recipes follow each other up to this one.
  int length() const { return length_; }
  const Geometry& geometry() const { return geometry_; }
  const at::TensorOptions& options() const { return options_; }
  // Whether t, which the recipe's node made or which is a view of what it made, still is the result.
  bool makes(const Tensor& t) const;
  // Lets go of what it computes from if nobody has a use for it.
  void discard_if_unused();

 private:
  friend class Use;
  friend class SavedTensor;
  const c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
  const Geometry geometry_;
  const at::TensorOptions options_;
  const size_t bytes_;
  const Version version_;
  const int joints_, length_;
  const Compute compute_;

  std::mutex mutex_;
  std::condition_variable computed_;
  std::vector<SavedTensor> sources_;
  bool discarded_ = false, computing_ = false;
  Tensor held_;
  uint32_t held_version_ = 0;          // a backward may write to what it has unpacked
  std::optional<c10::Stream> stream_;  // that it was computed on
  int uses_ = 0, served_ = 0, round_ = 0;

  Tensor get(const Use& use);
  Tensor if_alive() const;
  Tensor computed() const;
  bool can_share(const std::optional<c10::Stream>& stream) const;
  // What was held, to be freed without the lock.
  Tensor end_round_if_served();
};

// Whether a node can have a recipe for t: its memory is of known size, and there is any.
inline bool may_have_recipe(const Tensor& t) {
  return t.has_storage() && !t.unsafeGetTensorImpl()->has_symbolic_sizes_strides() && t.numel() > 0;
}

// What a node knows of its first output; the base of nodes. Another thread's backward may release it meanwhile.
class MakesOutput {
 public:
  std::shared_ptr<Recipe> recipe() const {
    const std::lock_guard<std::mutex> lock(recipe_mutex_);
    return recipe_;
  }
  // Releases the one before.
  void set_recipe(std::shared_ptr<Recipe> recipe) {
    const std::lock_guard<std::mutex> lock(recipe_mutex_);
    recipe_.swap(recipe);
  }

 private:
  mutable std::mutex recipe_mutex_;
  std::shared_ptr<Recipe> recipe_;
};

// The recipe for t, if it is the output of a node that has one, or a view of that; else null.
std::shared_ptr<Recipe> recipe_of(const Tensor& t);

// The number of joints that t is recomputed through; 0 if it is not.
int joints_of(const Tensor& t);

// That this thread keeps recipes.
class Recomputing {
 public:
  // Of this thread; null if it does not, or if other hooks than ours now keep what is saved.
  static Recomputing* active();

  // Whether nobody else's hooks keep what this thread saves.
  static bool is_possible();

  // Begins with hooks that call SavedTensor's constructor, once they have been pushed. They may nest.
  static void enter(int max_joints);
  // At the end of the outermost, recipes that nobody has a use for are discarded: from now on nobody can get one.
  static void exit();

  // Whether a layer's sum with a residual is to be recomputed, if the rest of it is through so many joints: if that is
  // not through too many, and the residual is kept anyway or can be recomputed itself.
  bool may_join(int joints, const Tensor& residual) const;

  // Whether something else keeps t's memory for a backward.
  bool is_kept(const Tensor& t) const;

  void note_kept(const std::shared_ptr<const Tensor>& t);
  void note_recipe(const std::shared_ptr<Recipe>& recipe);

 private:
  int max_joints_;
  size_t hooks_;  // on the thread's stack, ours on top
  std::unordered_map<const c10::StorageImpl*, std::weak_ptr<const Tensor>> kept_;
  std::vector<std::weak_ptr<Recipe>> recipes_;  // in the order in which they were made

  Recomputing(int max_joints, size_t hooks) : max_joints_(max_joints), hooks_(hooks) {}
};

// A parameter for a recipe: it is small, and may not be there when an output is computed again (FSDP frees parameters
// between a layer's forward and its backward).
Tensor copy_of(const std::optional<Tensor>& parameter);

// A recipe for what a layer has just computed from the sources, undefined ones among them; null if this thread keeps
// the result. The residual, which may be undefined, becomes the last source.
std::shared_ptr<Recipe> recipe_for(const Tensor& result, const Tensors& sources, const Tensor& residual,
                                   Recipe::Compute compute);

}  // namespace fusedtricks

#include "ops/recompute.h"

#include <ATen/SavedTensorHooks.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/set.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "ops/one_thread.h"

namespace fusedtricks {
namespace {

const c10::StorageImpl* storage_of(const Tensor& t) {
  return t.has_storage() ? t.storage().unsafeGetStorageImpl() : nullptr;
}

// t, or what it is a view of for autograd.
const Tensor& base_of(const Tensor& t) {
  const auto* view = torch::autograd::impl::get_view_autograd_meta(t);
  return view && view->has_bw_view() ? view->get_backward_view().base_ : t;
}

// The stream that work is sent to now; none on the CPU.
std::optional<c10::Stream> current_stream(const c10::Device& device) {
  if (!device.is_cuda()) return std::nullopt;
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

// Switches off what would change or record a computation that has been done before.
class AsBefore {
 private:
  const at::AutoGradMode no_grad_{false};
  const c10::impl::ExcludeDispatchKeyGuard no_autocast_{
      c10::DispatchKeySet({c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA})};
  const OneThreadIfForked one_thread_;
};

// The same tensor, that does not hold its node: a node may keep its own output.
Tensor without_node(const Tensor& t) { return t.grad_fn() ? t.detach() : t; }

// A result that follows from more recipes is kept: they are called by each other, on the thread's stack.
constexpr int kLongest = 64;

int longest(const std::vector<SavedTensor>& sources) {
  int length = 0;
  for (const SavedTensor& source : sources) length = std::max(length, source.length());
  return length;
}

std::string reason_to_keep(const Tensor& t) {
  const auto& node = base_of(t).grad_fn();
  if (!node) return t.is_leaf() && t.requires_grad() ? "a parameter" : "not computed here";
  const auto* ours = dynamic_cast<const MakesOutput*>(node.get());
  if (!ours) return "the output of " + node->name();
  return ours->recipe() ? "changed in place" : "the output of " + node->name() + ", which cannot be recomputed";
}

}  // namespace

Geometry::Geometry(const Tensor& t) : sizes(t.sizes().vec()), strides(t.strides().vec()), offset(t.storage_offset()) {}

Tensor Geometry::of(const Tensor& t) const { return t.as_strided(sizes, strides, offset); }

Version::Version(const Tensor& t)
    : counter_(t.is_inference() ? c10::VariableVersion() : torch::autograd::impl::version_counter(t)),
      version_(counter_.enabled() ? counter_.current_version() : 0) {}

void Version::check(const at::TensorOptions& options, at::IntArrayRef sizes) const {
  TORCH_CHECK(is_current(),
              "one of the variables needed for gradient computation has been modified by an inplace operation: [torch.",
              options.device().is_cuda() ? "cuda." : "", c10::toString(options.dtype().toScalarType()), "Tensor ",
              sizes, "] is at version ", counter_.current_version(), "; expected version ", version_,
              " instead. Hint: it was changed after it had been used, and before the backward.");
}

Use::Use(std::shared_ptr<Recipe> recipe) {
  const std::lock_guard<std::mutex> lock(recipe->mutex_);
  if (recipe->discarded_) return;
  ++recipe->uses_;
  recipe_ = recipe;
}

Use& Use::operator=(Use&& other) noexcept {
  std::swap(recipe_, other.recipe_);
  std::swap(served_in_, other.served_in_);
  return *this;
}

Use::~Use() {
  if (!recipe_) return;
  Tensor unused;
  const std::lock_guard<std::mutex> lock(recipe_->mutex_);
  --recipe_->uses_;
  if (served_in_ == recipe_->round_) --recipe_->served_;
  unused = recipe_->end_round_if_served();
}

Tensor Use::get() const { return recipe_->get(*this); }

SavedTensor::SavedTensor(const Tensor& t) {
  if (!t.defined()) return;
  version_.emplace(t);
  if (auto recipe = recipe_of(t)) recipe_ = Use(std::move(recipe));
  if (recipe_) {
    if (&base_of(t) != &t) geometry_.emplace(t);
    return;
  }
  reason_ = reason_to_keep(t);
  tensor_ = std::make_shared<const Tensor>(without_node(t));
  if (auto* recomputing = Recomputing::active()) recomputing->note_kept(tensor_);
}

Tensors SavedTensor::kept_tensors() const {
  Tensors kept;
  std::unordered_set<const Recipe*> seen;
  std::vector<const SavedTensor*> todo{this};
  while (!todo.empty()) {
    const SavedTensor& saved = *todo.back();
    todo.pop_back();
    if (saved.tensor_) kept.push_back(*saved.tensor_);
    if (!saved.recipe_ || !seen.insert(&saved.recipe_.recipe()).second) continue;
    for (const SavedTensor& source : saved.recipe_.recipe().sources_) todo.push_back(&source);
  }
  return kept;
}

Tensor SavedTensor::get() const {
  if (!version_) return Tensor();
  if (!recipe_) {
    version_->check(tensor_->options(), tensor_->sizes());
    return *tensor_;
  }
  version_->check(recipe_.recipe().options(), recipe_.recipe().geometry().sizes);
  const Tensor result = recipe_.get();
  const at::AutoGradMode no_grad(false);
  return geometry_ ? geometry_->of(result) : result;
}

int SavedTensor::length() const { return recipe_ ? recipe_.recipe().length() : 0; }

Recipe::Recipe(const Tensor& result, int joints, std::vector<SavedTensor> sources, Compute compute)
    : storage_(result.storage().getWeakStorageImpl()),
      geometry_(result),
      options_(result.options()),
      bytes_(result.storage().nbytes()),
      version_(result),
      joints_(joints),
      length_(1 + longest(sources)),
      compute_(std::move(compute)),
      sources_(std::move(sources)) {}

void Recipe::discard_if_unused() {
  std::vector<SavedTensor> sources;  // destroyed without the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  if (uses_) return;
  discarded_ = true;
  sources.swap(sources_);
}

bool Recipe::makes(const Tensor& t) const {
  return storage_of(t) == storage_._unsafe_get_target() && t.scalar_type() == options_.dtype() &&
         version_.is_current() && !t.is_conj() && !t.is_neg();
}

Tensor Recipe::get(const Use& use) {
  Tensor result = if_alive(), unused;
  const auto stream = current_stream(options_.device());
  std::unique_lock<std::mutex> lock(mutex_);
  computed_.wait(lock, [&] { return !computing_; });
  if (!result.defined() && can_share(stream)) result = held_;
  if (!result.defined()) {
    computing_ = true;
    lock.unlock();
    try {
      result = computed();
    } catch (...) {
      lock.lock();
      computing_ = false;
      computed_.notify_all();
      throw;
    }
    lock.lock();
    computing_ = false;
    computed_.notify_all();
    unused = std::exchange(held_, result);
    held_version_ = result._version();
    stream_ = stream;
  }
  if (use.served_in_ != round_) ++served_;
  use.served_in_ = round_;
  const Tensor no_longer_held = end_round_if_served();
  lock.unlock();
  return result;
}

// Whether what is held is the result, for work that is sent to that stream.
bool Recipe::can_share(const std::optional<c10::Stream>& stream) const {
  return held_.defined() && stream == stream_ && held_._version() == held_version_;
}

// The result itself, if its memory is still there because somebody else keeps it.
Tensor Recipe::if_alive() const {
  if (!options_.device().is_cpu() && !options_.device().is_cuda()) return Tensor();
  c10::Storage storage(storage_.lock());
  if (!storage || !version_.is_current() || storage.nbytes() < bytes_) return Tensor();
  const at::AutoGradMode no_grad(false);
  Tensor t = at::empty({0}, options_).set_(storage, geometry_.offset, geometry_.sizes, geometry_.strides);
  torch::autograd::impl::set_version_counter(t, version_.counter());
  return t;
}

Tensor Recipe::computed() const {
  const AsBefore as_before;
  Tensors sources;
  sources.reserve(sources_.size());
  for (const SavedTensor& source : sources_) sources.push_back(source.get());
  const Tensor result = compute_(sources);
  if (result.strides() == geometry_.strides) return result;
  return at::empty_strided(geometry_.sizes, geometry_.strides, options_).copy_(result);
}

Tensor Recipe::end_round_if_served() {
  if (served_ < uses_) return Tensor();
  served_ = 0;
  ++round_;
  return std::exchange(held_, Tensor());
}

std::shared_ptr<Recipe> recipe_of(const Tensor& t) {
  if (!t.defined()) return nullptr;
  const Tensor& base = base_of(t);
  const auto& node = base.grad_fn();
  if (!node || base.output_nr() != 0) return nullptr;
  const auto* ours = dynamic_cast<const MakesOutput*>(node.get());
  if (!ours) return nullptr;
  auto recipe = ours->recipe();
  return recipe && recipe->makes(t) ? recipe : nullptr;
}

int joints_of(const Tensor& t) {
  const auto recipe = recipe_of(t);
  return recipe ? recipe->joints() : 0;
}

namespace {

// Whether a list of that size is to be looked through for what is gone: at powers of two.
bool is_due(size_t size) { return size >= 64 && !(size & (size - 1)); }

std::vector<std::unique_ptr<Recomputing>>& contexts() {
  thread_local std::vector<std::unique_ptr<Recomputing>> all;
  return all;
}

}  // namespace

Recomputing* Recomputing::active() {
  const auto& all = contexts();
  if (all.empty()) return nullptr;
  const auto& hooks = at::SavedTensorDefaultHooks::get_tls_state();
  return hooks.stack.size() == all.back()->hooks_ && !hooks.is_tracing ? all.back().get() : nullptr;
}

bool Recomputing::is_possible() {
  const auto& hooks = at::SavedTensorDefaultHooks::get_tls_state();
  return !hooks.disabled_error_message && !hooks.is_tracing && (hooks.stack.empty() || active());
}

void Recomputing::enter(int max_joints) {
  const size_t hooks = at::SavedTensorDefaultHooks::get_tls_state().stack.size();
  contexts().push_back(std::unique_ptr<Recomputing>(new Recomputing(max_joints, hooks)));
}

void Recomputing::exit() {
  const std::unique_ptr<Recomputing> ended = std::move(contexts().back());
  contexts().pop_back();
  if (Recomputing* around = active()) {
    for (auto& recipe : ended->recipes_) around->recipes_.push_back(std::move(recipe));
    return;
  }
  // From the last on: one that is discarded has no use for those before.
  for (auto each = ended->recipes_.rbegin(); each != ended->recipes_.rend(); ++each) {
    if (const auto recipe = each->lock()) recipe->discard_if_unused();
  }
}

bool Recomputing::may_join(int joints, const Tensor& residual) const {
  if (1 + std::max(joints, joints_of(residual)) > max_joints_) return false;
  return recipe_of(residual) || is_kept(residual);
}

Tensor copy_of(const std::optional<Tensor>& parameter) {
  if (!parameter) return Tensor();
  const at::AutoGradMode no_grad(false);
  return parameter->detach().clone();
}

std::shared_ptr<Recipe> recipe_for(const Tensor& result, const Tensors& sources, const Tensor& residual,
                                   Recipe::Compute compute) {
  Recomputing* recomputing = Recomputing::active();
  const auto is_inference = [](const Tensor& t) { return t.defined() && t.is_inference(); };  // has no version
  if (!recomputing || !may_have_recipe(result) || is_inference(residual)) return nullptr;
  if (std::any_of(sources.begin(), sources.end(), is_inference)) return nullptr;
  int joints = 0;
  for (const Tensor& source : sources) joints = std::max(joints, joints_of(source));
  if (residual.defined()) {
    if (!recomputing->may_join(joints, residual)) return nullptr;
    joints = 1 + std::max(joints, joints_of(residual));
  }
  std::vector<SavedTensor> kept;
  for (const Tensor& source : sources) kept.emplace_back(source);
  kept.emplace_back(residual);
  if (longest(kept) >= kLongest) return nullptr;
  auto recipe = std::make_shared<Recipe>(result, joints, std::move(kept), std::move(compute));
  recomputing->note_recipe(recipe);
  return recipe;
}

void Recomputing::note_kept(const std::shared_ptr<const Tensor>& t) {
  if (const auto* storage = storage_of(*t)) kept_[storage] = t;
  if (!is_due(kept_.size())) return;
  for (auto each = kept_.begin(); each != kept_.end();) each = each->second.expired() ? kept_.erase(each) : ++each;
}

void Recomputing::note_recipe(const std::shared_ptr<Recipe>& recipe) {
  recipes_.push_back(recipe);
  if (!is_due(recipes_.size())) return;
  const auto expired = [](const std::weak_ptr<Recipe>& each) { return each.expired(); };
  recipes_.erase(std::remove_if(recipes_.begin(), recipes_.end(), expired), recipes_.end());
}

bool Recomputing::is_kept(const Tensor& t) const {
  const auto found = kept_.find(storage_of(t));
  return found != kept_.end() && !found->second.expired();
}

}  // namespace fusedtricks

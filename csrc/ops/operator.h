// Turns a struct of arguments into an operator of PyTorch. An operator is written once:
//
//   struct DropoutOp {
//     static constexpr const char* schema = "dropout(Tensor input, float p, ...) -> (Tensor output, Tensor rng_state)";
//     using Results = std::tuple<Tensor, Tensor>;
//     const Tensor& input;  // the arguments, in the schema's order and in the dispatcher's C++ types
//     double p;
//     Results run() const;
//     Results record() const;
//     auto differentiable() const;
//   };
//   const Operators<DropoutOp, DropoutBackwardOp> operators;
//
// run() checks the arguments, makes the outputs and calls the kernels. For meta tensors, whose sizes may be symbolic,
// it returns once the outputs exist. record() does the same and records the gradient; it is called if one of
// differentiable(), a tuple of inputs, requires grad. Optional members: cast(), the call under autocast; changed(), a
// tuple of the arguments that the operator writes to; the constants inplace, draws and composite (see below).
//
// call(DropoutOp{x, p, ...}) calls it:
//   call -> [dispatcher -> autocast -> dispatcher ->] record() or run() -> [dispatcher ->] run() -> kernels::dropout
// The steps in brackets are skipped if the dispatcher would do nothing there; see is_plain.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "ops/fields.h"
#include "ops/one_thread.h"

namespace fusedtricks {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Optional members of an operator's struct.
template <class Op, class = void>
constexpr bool has_record = false;
template <class Op>
constexpr bool has_record<Op, std::void_t<decltype(&Op::record)>> = true;
template <class Op, class = void>
constexpr bool has_cast = false;
template <class Op>
constexpr bool has_cast<Op, std::void_t<decltype(&Op::cast)>> = true;
template <class Op, class = void>
constexpr bool is_random = false;  // static constexpr bool draws: it takes random bits where no seed is given
template <class Op>
constexpr bool is_random<Op, std::void_t<decltype(Op::draws)>> = true;
template <class Op, class = void>
constexpr bool is_composite = false;  // static constexpr bool composite: run() calls differentiable operators
template <class Op>
constexpr bool is_composite<Op, std::void_t<decltype(Op::composite)>> = true;
template <class Op, class = void>
constexpr bool has_changed = false;  // auto changed() const: a tuple of the arguments that it writes to
template <class Op>
constexpr bool has_changed<Op, std::void_t<decltype(&Op::changed)>> = true;
template <class Op, class = void>
constexpr bool is_inplace = false;  // static constexpr bool inplace: it writes its result over `input`
template <class Op>
constexpr bool is_inplace<Op, std::void_t<decltype(Op::inplace)>> = true;

// For an operator with arguments F...: the type of a function of these arguments, and such functions.
template <class Op, class Fields = FieldsOf<Op>>
struct Unpacked;

template <class Op, class... F>
struct Unpacked<Op, std::tuple<F...>> {
  using Results = typename Op::Results;
  using Function = Results(F...);

  template <Results (*function)(const Op&)>
  static Results call(F... fields) {
    const OneThreadIfForked one_thread;
    return function(Op{std::forward<F>(fields)...});
  }
};

// "fusedtricks::" and the name in the schema.
template <class Op>
std::string qualified_name() {
  const std::string_view schema = Op::schema;
  return "fusedtricks::" + std::string(schema.substr(0, schema.find('(')));
}

// Through PyTorch's dispatcher.
template <class Op>
typename Op::Results dispatch(const Op& op) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow(qualified_name<Op>().c_str(), "")
                                 .template typed<typename Unpacked<Op>::Function>();
  return std::apply([](auto&&... field) { return handle.call(std::forward<decltype(field)>(field)...); },
                    fields_of(const_cast<Op&>(op)));
}

inline const Tensor* as_tensor(const Tensor& t) { return &t; }
inline const Tensor* as_tensor(const OptionalTensor& t) { return t ? &*t : nullptr; }
template <class T>
const Tensor* as_tensor(const T&) {
  return nullptr;
}

// Whether the dispatcher would only look at the tensor's device, one that we have kernels for.
inline bool is_plain(const Tensor& t) {
  constexpr c10::DispatchKeySet plain({c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::AutogradCPU,
                                       c10::DispatchKey::AutogradCUDA, c10::DispatchKey::ADInplaceOrView,
                                       c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA});
  return !t.defined() || plain.has_all(t.key_set());
}

// Whether no mode is active that the dispatcher acts on: autocast, inference mode, a transform, a tracer, a profiler.
inline bool is_plain_thread() {
  const auto keys = c10::impl::tls_local_dispatch_key_set();
  return keys.included_ == c10::default_included_set && keys.excluded_ == c10::default_excluded_set &&
         !at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION);
}

// Whether the dispatcher would go straight through autograd to the kernels. Then the caller can do so without it.
template <class Op>
bool is_plain(const Op& op) {
  const auto all_are = [](const auto&... field) {
    return ([](const Tensor* t) { return !t || is_plain(*t); }(as_tensor(field)) && ...);
  };
  return is_plain_thread() && std::apply(all_are, fields_of(const_cast<Op&>(op)));
}

inline bool requires_grad(const Tensor& t) { return t.requires_grad(); }
inline bool requires_grad(const OptionalTensor& t) { return t && t->requires_grad(); }

// Whether a call has to be recorded.
template <class Op>
bool records(const Op& op) {
  if (!c10::GradMode::is_enabled()) return false;
  return std::apply([](const auto&... input) { return (requires_grad(input) || ...); }, op.differentiable());
}

// For a tensor that a kernel has written to. Autograd then notices if the old value was kept for a backward.
inline void bump_version(const Tensor& t) {
  if (t.defined() && !t.is_inference()) torch::autograd::impl::bump_version(t);
}
inline void bump_version(const OptionalTensor& t) {
  if (t) bump_version(*t);
}

template <class... T>
void bump_versions(const std::tuple<T...>& changed) {
  std::apply([](const auto&... t) { (bump_version(t), ...); }, changed);
}

// RuntimeError, as stock's, where t may not be written to.
inline void check_writable(const Tensor& t) {
  TORCH_CHECK(!t.defined() || !t.is_inference() || c10::InferenceMode::is_enabled(),
              "Inplace update to inference tensor outside InferenceMode is not allowed. "
              "You can make a clone to get a normal tensor before doing inplace update.");
}
inline void check_writable(const OptionalTensor& t) {
  if (t) check_writable(*t);
}

template <class Op>
void check_writable_arguments(const Op& op) {
  if constexpr (has_changed<Op>) std::apply([](const auto&... t) { (check_writable(t), ...); }, op.changed());
}

// Calls run() below autograd, so that nothing is recorded, and bumps the version of the arguments that it changes.
template <class Op>
typename Op::Results call_below(const Op& op) {
  const bool plain = is_plain(op);
  check_writable_arguments(op);
  const auto run = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return plain ? op.run() : dispatch(op);
  };
  if constexpr (!has_changed<Op>) {
    return run();
  } else if constexpr (std::is_void_v<typename Op::Results>) {
    run();
    bump_versions(op.changed());
  } else {
    auto results = run();
    bump_versions(op.changed());
    return results;
  }
}

// NotImplementedError for a forward-mode gradient, which kernels would lose. (Functions of Python compose where there
// is one, and never get here.)
inline void check_no_tangent(const Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(!t.defined() || !t._fw_grad(/*level=*/0).defined(),
                              "fusedtricks: no forward-mode gradient of an operator or of a recorded backward; "
                              "call the functions of fusedtricks within the dual level");
}

// What a call does about autograd.
template <class Op>
typename Op::Results record_or_run(const Op& op) {
  if constexpr (!has_record<Op>) {
    return call_below(op);
  } else {
    const bool recorded = records(op);
    if constexpr (is_inplace<Op>) torch::autograd::check_inplace(op.input, recorded);
    return recorded ? op.record() : call_below(op);
  }
}

template <class Op>
typename Op::Results call(const Op& op) {
  return is_plain(op) ? record_or_run(op) : dispatch(op);
}

// NotImplementedError for a device without kernels, naming the first tensor.
void unsupported_device(const c10::OperatorHandle& op, torch::jit::Stack* stack);

// The Autograd key of the dispatcher.
template <class Op>
typename Op::Results autograd(const Op& op) {
  const auto check = [](const Tensor* t) {
    if (t) check_no_tangent(*t);
  };
  std::apply([&](const auto&... field) { (check(as_tensor(field)), ...); }, fields_of(const_cast<Op&>(op)));
  return record_or_run(op);
}

template <class Op>
typename Op::Results run(const Op& op) {
  check_writable_arguments(op);
  return op.run();
}

template <class Op>
typename Op::Results cast(const Op& op) {
  const c10::impl::ExcludeDispatchKeyGuard without_autocast(
      c10::DispatchKeySet({c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA}));
  return op.cast();
}

// Registers operators with PyTorch, for as long as the process lives.
template <class... Op>
class Operators {
 public:
  Operators() { (add<Op>(), ...); }

 private:
  std::deque<torch::Library> libraries_;

  torch::Library& library(torch::Library::Kind kind, std::optional<c10::DispatchKey> key = std::nullopt) {
    return libraries_.emplace_back(kind, "fusedtricks", key, __FILE__, __LINE__);
  }

  template <class O, typename O::Results (*function)(const O&)>
  void implement(c10::DispatchKey key) {
    const std::string name = qualified_name<O>();
    library(torch::Library::IMPL, key).impl(name.c_str(), &Unpacked<O>::template call<function>);
  }

  template <class O>
  void add() {
    const auto tags = is_random<O> ? std::vector<at::Tag>{at::Tag::nondeterministic_seeded} : std::vector<at::Tag>{};
    library(torch::Library::FRAGMENT).def(O::schema, tags);
    if constexpr (has_cast<O>) {
      for (const auto key : {c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA}) implement<O, cast<O>>(key);
    }
    if constexpr (is_composite<O>) {
      implement<O, run<O>>(c10::DispatchKey::CompositeImplicitAutograd);
    } else {
      for (const auto key : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::Meta}) {
        implement<O, run<O>>(key);
      }
      library(torch::Library::IMPL, c10::DispatchKey::CompositeExplicitAutograd)
          .impl(qualified_name<O>().c_str(), torch::CppFunction::makeFromBoxedFunction<&unsupported_device>());
      if constexpr (has_record<O>) implement<O, autograd<O>>(c10::DispatchKey::Autograd);
    }
  }
};

}  // namespace fusedtricks

// Launches of the kernels of batch_norm_act: which walk over the tensor, and one kernel or two.
#pragma once

#include <optional>

#include "cuda/batch_norm/kernels_of_dtype.h"
#include "cuda/batch_norm/launch_two_kernels.cuh"
#include "cuda/batch_norm/persistent_backward.cuh"
#include "cuda/batch_norm/persistent_forward.cuh"
#include "cuda/batch_norm/persistent_plan.cuh"

namespace fusedtricks::cuda {

// Whether there are persistent kernels. Those for single elements or doubles would rarely be used.
template <class T, class Walk>
constexpr bool kMayPersist = Walk::pack > 1 && !std::is_same_v<T, double>;

// How a call is made in one persistent kernel; none if it takes two kernels. One kernel is not for dropout, which would
// double the number of kernels, nor for a cumulative average, whose batches are counted in the same kernel.
template <class T, class Walk>
std::optional<PersistentPlan<Walk>> persistent_plan(const BatchNormForward& a, Path path) {
  if (path == Path::kTwo || !a.training || a.drops() || (a.cumulative && a.running_mean)) return std::nullopt;
  const PersistentPlan<Walk> plan(a.layout, /*tensors=*/1, merge_bytes<Moments<OpMath<T>>>(Walk::channels));
  return plan.is_used(path) ? std::optional(plan) : std::nullopt;
}

template <class T, class Walk>
std::optional<PersistentPlan<Walk>> persistent_plan(const BatchNormBackward& a, Path path) {
  if (path == Path::kTwo || !a.training || a.drops() || !a.dx || a.residual) return std::nullopt;
  const PersistentPlan<Walk> plan(a.layout, /*tensors=*/2, merge_bytes<Sums<OpMath<T>>>(Walk::channels));
  return plan.is_used(path) ? std::optional(plan) : std::nullopt;
}

template <class T, class Walk>
void launch_persistent(const BatchNormForward& a, const PersistentPlan<Walk>& plan) {
  using V = OpMath<T>;
  with_activation<V>(a.act, [&](auto act) {
    using Act = decltype(act);
    plan.template launch_kernel<V>(
        a.residual ? persistent_normalize<T, Walk, Act, true> : persistent_normalize<T, Walk, Act, false>, a, act);
  });
}

template <class T, class Walk>
void launch_persistent(const BatchNormBackward& a, const PersistentPlan<Walk>& plan) {
  using V = OpMath<T>;
  with_activation<V>(a.act, [&](auto act) {
    using Act = decltype(act);
    plan.template launch_kernel<V>(a.output ? persistent_differentiate<T, Walk, Act, Derivative::kOfOutput>
                                            : persistent_differentiate<T, Walk, Act, Derivative::kAtInput>,
                                   a, act);
  });
}

// Calls one(plan) if the call is made in one kernel, else two().
template <class T, class Walk, class Call, class One, class Two>
void choose_kernels(const Call& a, Path path, const One& one, const Two& two) {
  if constexpr (kMayPersist<T, Walk>) {
    if (const auto plan = persistent_plan<T, Walk>(a, path)) return one(*plan);
  }
  two();
}

template <class T, class Walk, class Call>
int64_t workspace_bytes(const Call& a, Path path) {
  int64_t bytes = 0;
  choose_kernels<T, Walk>(
      a, path, [&](const auto& plan) { bytes = plan.template workspace_bytes<OpMath<T>>(a.layout.channels); },
      [&] { bytes = two_kernels_workspace<T, Walk>(a.layout); });
  return bytes;
}

// Calls f(Type<Walk>) with the walk of a call.
template <class T, class F>
void with_walk_of(const BatchNormForward& a, const F& f) {
  with_walk<T>(a.layout, {a.x, a.y, a.residual}, f);
}

template <class T, class F>
void with_walk_of(const BatchNormBackward& a, const F& f) {
  with_walk<T>(a.layout, {a.x, a.dy, a.dx, a.dz, a.output, a.residual}, f);
}

template <class T>
int64_t BatchNormKernels<T>::forward_workspace(const BatchNormForward& a, Path path) {
  if (!a.training) return 0;
  int64_t bytes = 0;
  with_walk_of<T>(a, [&](auto walk) { bytes = workspace_bytes<T, typename decltype(walk)::type>(a, path); });
  return bytes;
}

template <class T>
int64_t BatchNormKernels<T>::backward_workspace(const BatchNormBackward& a, Path path) {
  int64_t bytes = 0;
  with_walk_of<T>(a, [&](auto walk) { bytes = workspace_bytes<T, typename decltype(walk)::type>(a, path); });
  return bytes;
}

template <class T>
void BatchNormKernels<T>::forward(const BatchNormForward& a, Path path) {
  with_walk_of<T>(a, [&](auto walk) {
    using Walk = typename decltype(walk)::type;
    choose_kernels<T, Walk>(
        a, path, [&](const auto& plan) { launch_persistent<T>(a, plan); }, [&] { launch_forward_in_two<T, Walk>(a); });
  });
}

template <class T>
void BatchNormKernels<T>::backward(const BatchNormBackward& a, Path path) {
  with_walk_of<T>(a, [&](auto walk) {
    using Walk = typename decltype(walk)::type;
    choose_kernels<T, Walk>(
        a, path, [&](const auto& plan) { launch_persistent<T>(a, plan); }, [&] { launch_backward_in_two<T, Walk>(a); });
  });
}

template <class T>
int64_t BatchNormKernels<T>::statistics_workspace(const BatchNormForward& a) {
  if (!a.training) return 0;
  int64_t bytes = 0;
  with_walk_of<T>(a, [&](auto walk) { bytes = two_kernels_workspace<T, typename decltype(walk)::type>(a.layout); });
  return bytes;
}

template <class T>
void BatchNormKernels<T>::statistics(const BatchNormForward& a) {
  with_walk_of<T>(a, [&](auto type) {
    using Walk = typename decltype(type)::type;
    const auto plan = plan_for<Walk>(a.layout);
    const Workspace<OpMath<T>> workspace(a.workspace, plan.partials(), a.layout.channels);
    launch_statistics<T, Walk>(a, plan, workspace);
    launch(record_statistics<T, Walk>, plan.groups, kThreads, shared_bytes<Walk>(plan, 0), a, plan, workspace);
  });
}

}  // namespace fusedtricks::cuda

// Launches of the kernels of batch_norm_act: which walk over the tensor, how many blocks.
#pragma once

#include "../dtypes.h"
#include "activation.cuh"
#include "batch_norm.h"
#include "batch_norm_kernels.cuh"

namespace fusedtricks::cuda {

// Steps that make a block worth its while.
constexpr int kStepsOfBlock = 8;

// One wave of blocks, as many a multiprocessor as the registers of the kernels allow.
template <class Walk>
typename Walk::Plan plan_for(const Layout& layout, int blocks) {
  return with_blocks(Walk::Plan::make(layout), int64_t(blocks) * multiprocessors(), kStepsOfBlock);
}

template <class Walk>
size_t shared_bytes(const typename Walk::Plan& plan, size_t merged) {
  constexpr size_t coefficient = sizeof(double);
  return std::max(merged, total_bytes(kThreads, plan) + kCoefficients * coefficient * plan.block_channels());
}

// Calls f(walk) with the walk for that layout: by packs where every tensor begins at a multiple of one, and a row too.
template <class T, class F>
void with_walk(const Layout& layout, std::initializer_list<const void*> tensors, const F& f) {
  bool aligned = true;
  for (const void* t : tensors) aligned = aligned && (!t || is_pack_aligned(t));
  if (layout.rows && aligned && layout.channels % kPack<T> == 0) return f(Type<RowsWalk<kPack<T>>>());
  if (layout.rows) return f(Type<RowsWalk<1>>());
  if (aligned) return f(Type<PlanesWalk<kPack<T>>>());
  f(Type<PlanesWalk<1>>());
}

// Every activation by one kernel where elements move singly: that is slow for other reasons.
template <class T, class Walk, class F>
void with_activation_for(const Activation& activation, const F& f) {
  if constexpr (Walk::pack > 1)
    with_activation<Compute<T>>(activation, f);
  else
    f(AnyActivation<Compute<T>>{activation});
}

template <class T, class Walk>
void launch_forward(const BatchNormForward& a) {
  using V = Compute<T>;
  const auto plan = plan_for<Walk>(a.layout, kNormalizeBlocks), sums = plan_for<Walk>(a.layout, kSumsBlocks);
  const Workspace<V> workspace(a.workspace, sums.chunks, a.layout.channels);
  if (a.training) {
    launch(statistics<T, Walk>, parts(sums), kThreads, merge_bytes<Moments<V>>(kThreads, Walk::channels), a, sums,
           workspace);
  }
  with_activation_for<T, Walk>(a.act, [&](auto act) {
    using Act = decltype(act);
    launch(a.residual ? normalize<T, Walk, Act, true> : normalize<T, Walk, Act, false>, parts(plan), kThreads,
           shared_bytes<Walk>(plan, 0), a, plan, sums, workspace, act);
  });
}

template <class T, class Walk>
void launch_backward(const BatchNormBackward& a) {
  using V = Compute<T>;
  const auto plan = plan_for<Walk>(a.layout, kSumsBlocks);
  const Workspace<V> workspace(a.workspace, plan.chunks, a.layout.channels);
  const auto add = [&](auto* kernel, auto act) {
    launch(kernel, parts(plan), kThreads, shared_bytes<Walk>(plan, merge_bytes<Sums<V>>(kThreads, Walk::channels)), a,
           plan, workspace, act);
  };
  if (a.output) {
    with_activation_for<T, Walk>(
        a.act, [&](auto act) { add(sum_gradients<T, Walk, decltype(act), Derivative::kOfOutput>, act); });
  } else if (a.residual) {
    const AnyActivation<V> act{a.act};
    add(sum_gradients<T, Walk, AnyActivation<V>, Derivative::kAtResidual>, act);
  } else if (a.needs_sums()) {
    with_activation_for<T, Walk>(
        a.act, [&](auto act) { add(sum_gradients<T, Walk, decltype(act), Derivative::kAtInput>, act); });
  }
  with_activation_for<T, Walk>(a.after_residual() ? Activation{0, {}} : a.act, [&](auto act) {
    launch(differentiate<T, Walk, decltype(act)>, parts(plan), kThreads, shared_bytes<Walk>(plan, 0), a, plan, plan,
           workspace, act);
  });
}

template <class T>
int64_t BatchNormKernels<T>::forward_workspace(const BatchNormForward& a) {
  if (!a.training) return 0;
  int64_t bytes = 0;
  with_walk<T>(a.layout, {a.x, a.y, a.residual}, [&](auto walk) {
    const auto plan = plan_for<typename decltype(walk)::type>(a.layout, kSumsBlocks);
    bytes = Workspace<Compute<T>>::bytes(plan.chunks, a.layout.channels);
  });
  return bytes;
}

template <class T>
void BatchNormKernels<T>::forward(const BatchNormForward& a) {
  with_walk<T>(a.layout, {a.x, a.y, a.residual},
               [&](auto walk) { launch_forward<T, typename decltype(walk)::type>(a); });
}

template <class T>
int64_t BatchNormKernels<T>::backward_workspace(const BatchNormBackward& a) {
  int64_t bytes = 0;
  with_walk<T>(a.layout, {a.x, a.dy, a.dx, a.dz, a.output, a.residual}, [&](auto walk) {
    const auto plan = plan_for<typename decltype(walk)::type>(a.layout, kSumsBlocks);
    bytes = Workspace<Compute<T>>::bytes(plan.chunks, a.layout.channels);
  });
  return bytes;
}

template <class T>
void BatchNormKernels<T>::backward(const BatchNormBackward& a) {
  with_walk<T>(a.layout, {a.x, a.dy, a.dx, a.dz, a.output, a.residual},
               [&](auto walk) { launch_backward<T, typename decltype(walk)::type>(a); });
}

}  // namespace fusedtricks::cuda

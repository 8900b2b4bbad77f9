// Launches of the pairs of kernels of batch_norm_act.
#pragma once

#include "cuda/batch_norm/two_kernels.cuh"
#include "cuda/device/activation_packs.cuh"
#include "cuda/device/choose_walk.cuh"

namespace fusedtricks::cuda {

// One block for every part, and as many as the GPU runs at the same time.
template <class Walk>
typename Walk::Plan plan_for(const Layout& layout) {
  return with_blocks(Walk::Plan::make(layout), int64_t(kBlocks) * multiprocessors(), kStepsOfBlock);
}

template <class T, class Walk>
int64_t two_kernels_workspace(const Layout& layout) {
  return Workspace<OpMath<T>>::bytes(plan_for<Walk>(layout).partials(), layout.channels);
}

// Shared memory for the table of coefficients and for what a kernel merges, of which `merged` bytes are for its
// threads.
template <class Walk>
size_t shared_bytes(const typename Walk::Plan& plan, size_t merged) {
  return std::max(merged, total_bytes(plan) + kCoefficients * sizeof(double) * plan.block_channels());
}

// Activations can be compiled in only where elements move by packs.
template <class T, class Walk, class F>
void with_activation_for(const Activation& activation, const F& f) {
  with_activation<OpMath<T>, (Walk::pack > 1)>(activation, f);
}

// Calls f(dropout) with the call's dropout, or with NoDropout. masks: if not, dropout only scales.
template <class V, class Call, class F>
void with_dropout(const Call& a, bool masks, const F& f) {
  if (a.drops()) return f(Dropout<V>{V(a.mask.rate.scale), masks});
  f(NoDropout());
}

// Calls f(activation, dropout). With dropout no activation is compiled in: there would be too many kernels.
template <class T, class Walk, class Call, class F>
void with_activation_and_dropout(const Call& a, bool masks, const F& f) {
  with_dropout<OpMath<T>>(a, masks, [&](auto dropout) {
    if constexpr (decltype(dropout)::drops)
      f(AnyActivation<OpMath<T>>{a.act}, dropout);
    else
      with_activation_for<T, Walk>(a.act, [&](auto act) { f(act, dropout); });
  });
}

template <class T, class Walk>
void launch_statistics(const BatchNormForward& a, const typename Walk::Plan& plan,
                       const Workspace<OpMath<T>>& workspace) {
  using V = OpMath<T>;
  if (!a.training) return;
  const size_t bytes = pivot_bytes<V>(plan) + merge_bytes<Moments<V>>(Walk::channels);
  launch(statistics<T, Walk>, parts(plan), kThreads, bytes, a, plan, workspace);
}

template <class T, class Walk>
void launch_forward_in_two(const BatchNormForward& a) {
  const auto plan = plan_for<Walk>(a.layout);
  const Workspace<OpMath<T>> workspace(a.workspace, plan.partials(), a.layout.channels);
  launch_statistics<T, Walk>(a, plan, workspace);
  with_activation_and_dropout<T, Walk>(a, /*masks=*/true, [&](auto act, auto dropout) {
    using Act = decltype(act);
    using Dropout = decltype(dropout);
    launch(a.residual ? normalize<T, Walk, Act, true, Dropout> : normalize<T, Walk, Act, false, Dropout>, parts(plan),
           kThreads, shared_bytes<Walk>(plan, 0), a, plan, workspace, act, dropout);
  });
}

// Launches sum_gradients for the derivative that the call needs, if it needs anything of it.
template <class T, class Walk>
void launch_sums(const BatchNormBackward& a, const typename Walk::Plan& plan, const Workspace<OpMath<T>>& workspace) {
  using V = OpMath<T>;
  const auto launch_for = [&](auto derivative, auto act, auto dropout) {
    launch(sum_gradients<T, Walk, decltype(act), derivative.value, decltype(dropout)>, parts(plan), kThreads,
           shared_bytes<Walk>(plan, merge_bytes<Sums<V>>(Walk::channels)), a, plan, workspace, act, dropout);
  };
  if (a.output) {
    with_activation_and_dropout<T, Walk>(a, a.needs_mask(), [&](auto act, auto dropout) {
      launch_for(std::integral_constant<Derivative, Derivative::kOfOutput>(), act, dropout);
    });
  } else if (a.residual) {
    with_dropout<V>(a, a.needs_mask(), [&](auto dropout) {
      launch_for(std::integral_constant<Derivative, Derivative::kAtResidual>(), AnyActivation<V>{a.act}, dropout);
    });
  } else if (a.needs_sums()) {
    with_activation_and_dropout<T, Walk>(a, a.needs_mask(), [&](auto act, auto dropout) {
      launch_for(std::integral_constant<Derivative, Derivative::kAtInput>(), act, dropout);
    });
  }
}

template <class T, class Walk>
void launch_backward_in_two(const BatchNormBackward& a) {
  const auto plan = plan_for<Walk>(a.layout);
  const Workspace<OpMath<T>> workspace(a.workspace, plan.partials(), a.layout.channels);
  launch_sums<T, Walk>(a, plan, workspace);
  const auto launch_with = [&](auto act, auto dropout) {
    launch(differentiate<T, Walk, decltype(act), decltype(dropout)>, parts(plan), kThreads, shared_bytes<Walk>(plan, 0),
           a, plan, workspace, act, dropout);
  };
  if (a.after_residual()) {
    // dx follows from dz, in which activation and dropout already are.
    with_activation_for<T, Walk>(Activation{0, {}}, [&](auto identity) { launch_with(identity, NoDropout()); });
  } else {
    with_activation_and_dropout<T, Walk>(a, a.needs_mask(), launch_with);
  }
}

}  // namespace fusedtricks::cuda

// Launches of the kernels of batch_norm_act: which walk over the tensor, how many blocks.
#pragma once

#include "core/dtypes.h"
#include "cuda/device/activation_packs.cuh"
#include "cuda/batch_norm/kernels_of_dtype.h"
#include "cuda/batch_norm/persistent_kernels.cuh"
#include "cuda/batch_norm/two_kernels.cuh"
#include "cuda/device/choose_walk.cuh"

namespace fusedtricks::cuda {

// Steps that make a block worth its while.
constexpr int kStepsOfBlock = 16;

// One wave of blocks, as many a multiprocessor as the registers of the kernels allow.
template <class Walk>
typename Walk::Plan plan_for(const Layout& layout) {
  return with_blocks(Walk::Plan::make(layout), int64_t(kBlocks) * multiprocessors(), kStepsOfBlock);
}

template <class Walk>
size_t shared_bytes(const typename Walk::Plan& plan, size_t merged) {
  constexpr size_t coefficient = sizeof(double);
  return std::max(merged, total_bytes(plan) + kCoefficients * coefficient * plan.block_channels());
}

// The activations have kernels of their own where elements move by packs.
template <class T, class Walk, class F>
void with_activation_for(const Activation& activation, const F& f) {
  with_activation<OpMath<T>, (Walk::pack > 1)>(activation, f);
}

// Calls f(activation, dropout). Kernels that drop serve any activation: they are too many to have one for each.
template <class T, class Walk, class Call, class F>
void with_activation_and_dropout(const Call& a, const Activation& activation, const MaskSource& source, bool masks,
                                 const F& f) {
  using V = OpMath<T>;
  if (a.drops()) return f(AnyActivation<V>{activation}, Dropout<V>{source, a.layout, V(a.rate.scale), masks});
  with_activation_for<T, Walk>(activation, [&](auto act) { f(act, NoDropout()); });
}

// Draws the mask of a call's dropout, where there is one.
inline MaskSource mask_source(const BatchNormForward& a) {
  if (!a.drops()) return {};
  const RandomSource source = a.seed ? RandomSource{uint64_t(*a.seed), 0} : draw_random_source();
  return {source, nullptr, a.rng_state, uint32_t(a.rate.threshold), a.rate.drops_all()};
}

inline MaskSource mask_source(const BatchNormBackward& a) {
  return {{}, a.rng_state, nullptr, uint32_t(a.rate.threshold), a.rate.drops_all()};
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
  using V = OpMath<T>;
  const auto plan = plan_for<Walk>(a.layout);
  const Workspace<V> workspace(a.workspace, plan.partials(), a.layout.channels);
  launch_statistics<T, Walk>(a, plan, workspace);
  with_activation_and_dropout<T, Walk>(a, a.act, mask_source(a), true, [&](auto act, auto dropout) {
    using Act = decltype(act);
    using Dropout = decltype(dropout);
    launch(a.residual ? normalize<T, Walk, Act, true, Dropout> : normalize<T, Walk, Act, false, Dropout>, parts(plan),
           kThreads, shared_bytes<Walk>(plan, 0), a, plan, workspace, act, dropout);
  });
}

template <class T, class Walk>
void launch_backward_in_two(const BatchNormBackward& a) {
  using V = OpMath<T>;
  const auto plan = plan_for<Walk>(a.layout);
  const Workspace<V> workspace(a.workspace, plan.partials(), a.layout.channels);
  const auto add = [&](auto* kernel, auto act, auto dropout) {
    launch(kernel, parts(plan), kThreads, shared_bytes<Walk>(plan, merge_bytes<Sums<V>>(Walk::channels)), a, plan,
           workspace, act, dropout);
  };
  const auto with_dropout = [&](const auto& f) {
    with_activation_and_dropout<T, Walk>(a, a.act, mask_source(a), a.needs_mask(), f);
  };
  if (a.output) {
    with_dropout([&](auto act, auto dropout) {
      add(sum_gradients<T, Walk, decltype(act), Derivative::kOfOutput, decltype(dropout)>, act, dropout);
    });
  } else if (a.residual) {
    const AnyActivation<V> act{a.act};
    const auto add_at_residual = [&](auto dropout) {
      add(sum_gradients<T, Walk, AnyActivation<V>, Derivative::kAtResidual, decltype(dropout)>, act, dropout);
    };
    if (a.drops())
      add_at_residual(Dropout<V>{mask_source(a), a.layout, V(a.rate.scale), true});
    else
      add_at_residual(NoDropout());
  } else if (a.needs_sums()) {
    with_dropout([&](auto act, auto dropout) {
      add(sum_gradients<T, Walk, decltype(act), Derivative::kAtInput, decltype(dropout)>, act, dropout);
    });
  }
  const auto differentiate_with = [&](auto act, auto dropout) {
    launch(differentiate<T, Walk, decltype(act), decltype(dropout)>, parts(plan), kThreads, shared_bytes<Walk>(plan, 0),
           a, plan, workspace, act, dropout);
  };
  if (a.after_residual()) {
    with_activation_for<T, Walk>(Activation{0, {}}, [&](auto act) { differentiate_with(act, NoDropout()); });
  } else {
    with_dropout(differentiate_with);
  }
}

// How the groups of a layout are held with `tensors` tensors of a group in shared memory; no slots where it cannot be.
template <class Walk>
struct HoldPlan {
  typename Walk::Plan plan;
  Hold hold{};

  HoldPlan(const Layout& layout, int tensors, size_t merged) : plan(Walk::Plan::make(layout)) {
    hold.scratch = int64_t(std::max(pivot_bytes<double>(plan) + merged, total_bytes(plan)));
    const int64_t step = int64_t(kThreads) * kPackBytes * tensors, all = ceil_div(plan.items, plan.teams());
    const int64_t most = (shared_memory_per_block(kBlocks) - hold.scratch - table_bytes()) / step;
    if (most < 1) return;
    // Blocks of two groups a multiprocessor, so that one works while the other waits, even where neither fits whole.
    const int64_t blocks = int64_t(kBlocks) * multiprocessors();
    const int64_t needed = std::min(ceil_div(all, most), blocks / std::min<int64_t>(plan.groups, kBlocks));
    const int64_t turns = ceil_div(plan.groups, std::min(plan.groups, blocks / needed));
    hold.slots = int(ceil_div(plan.groups, turns));
    const int64_t useful = std::min(blocks / hold.slots, ceil_div(all, kStepsOfBlock));
    const int64_t members = needed > 1 ? std::max(needed, useful) : 1;
    plan.division = Chunks::make(plan.items, members);
    hold.steps = int(std::min(most, ceil_div(ceil_div(plan.items, members), plan.teams())));
    hold.held = hold.steps * step;
  }

  int64_t table_bytes() const { return kCoefficients * int64_t(sizeof(double)) * plan.block_channels(); }

  // The groups of a fold's channels need each other's partial results, in the same turn.
  bool is_possible() const { return hold.slots && (plan.fold == 1 || hold.slots == plan.groups); }

  // auto: without blocks that wait for each other, and not where few have much to do, which two kernels would spread
  // over all multiprocessors.
  bool is_taken(Path path) const {
    if (!is_possible() || path == Path::kTwo) return false;
    const bool keeps_busy = hold.steps <= kStepsOfBlock || 2 * hold.slots >= 3 * multiprocessors();
    return path == Path::kHold || (!is_shared(plan) && keeps_busy);
  }

  template <class V>
  int64_t workspace_bytes(int64_t channels) const {
    return arrivals_offset<V>(channels) + hold.slots * int64_t(sizeof(uint32_t)) * kArrivalsApart;
  }

  template <class V, class Kernel, class Call, class Act>
  void launch_kernel(Kernel* kernel, const Call& a, const Act& act) const {
    const Workspace<V> workspace(a.workspace, plan.partials(), a.layout.channels);
    Hold placed = hold;
    placed.arrivals =
        reinterpret_cast<uint32_t*>(static_cast<char*>(a.workspace) + arrivals_offset<V>(a.layout.channels));
    const int64_t blocks = hold.slots * plan.division.chunks, bytes = hold.held + hold.scratch + table_bytes();
    if (is_shared(plan))
      launch_cooperative(kernel, blocks, kThreads, bytes, a, plan, placed, workspace, act);
    else
      launch(kernel, blocks, kThreads, bytes, a, plan, placed, workspace, act);
  }

 private:
  template <class V>
  int64_t arrivals_offset(int64_t channels) const {
    return Workspace<V>::bytes(plan.partials(), channels);
  }
};

template <class T, class Walk>
constexpr bool kMayHold = Walk::pack > 1 && !std::is_same_v<T, double>;

template <class T, class Walk>
HoldPlan<Walk> forward_hold(const Layout& layout) {
  return HoldPlan<Walk>(layout, 1, merge_bytes<Moments<OpMath<T>>>(Walk::channels));
}

template <class T, class Walk>
HoldPlan<Walk> backward_hold(const Layout& layout) {
  return HoldPlan<Walk>(layout, 2, merge_bytes<Sums<OpMath<T>>>(Walk::channels));
}

// Whether a call is launched as one kernel. Not with dropout, which would double the kernels; nor with a cumulative
// average: the batch is counted in the same kernel.
template <class T, class Walk>
bool launch_forward_held(const BatchNormForward& a, Path path) {
  using V = OpMath<T>;
  if (!a.training || a.drops() || (a.momentum < 0 && a.running_mean)) return false;
  const auto held = forward_hold<T, Walk>(a.layout);
  if (!held.is_taken(path)) return false;
  with_activation<V>(a.act, [&](auto act) {
    using Act = decltype(act);
    held.template launch_kernel<V>(
        a.residual ? hold_normalize<T, Walk, Act, true> : hold_normalize<T, Walk, Act, false>, a, act);
  });
  return true;
}

template <class T, class Walk>
bool launch_backward_held(const BatchNormBackward& a, Path path) {
  using V = OpMath<T>;
  if (!a.training || a.drops() || !a.dx || a.residual) return false;
  const auto held = backward_hold<T, Walk>(a.layout);
  if (!held.is_taken(path)) return false;
  with_activation<V>(a.act, [&](auto act) {
    using Act = decltype(act);
    held.template launch_kernel<V>(a.output ? hold_differentiate<T, Walk, Act, Derivative::kOfOutput>
                                            : hold_differentiate<T, Walk, Act, Derivative::kAtInput>,
                                   a, act);
  });
  return true;
}

template <class T, class Walk>
void launch_forward(const BatchNormForward& a, Path path) {
  if constexpr (kMayHold<T, Walk>) {
    if (launch_forward_held<T, Walk>(a, path)) return;
  }
  launch_forward_in_two<T, Walk>(a);
}

template <class T, class Walk>
void launch_backward(const BatchNormBackward& a, Path path) {
  if constexpr (kMayHold<T, Walk>) {
    if (launch_backward_held<T, Walk>(a, path)) return;
  }
  launch_backward_in_two<T, Walk>(a);
}

// Bytes that the partial results of either path take.
template <class T, class Walk, class HeldPlan>
int64_t workspace_bytes(const Layout& layout, const HeldPlan& held_plan) {
  using V = OpMath<T>;
  const int64_t bytes = Workspace<V>::bytes(plan_for<Walk>(layout).partials(), layout.channels);
  if constexpr (!kMayHold<T, Walk>) return bytes;
  return std::max(bytes, held_plan(Type<Walk>()).template workspace_bytes<V>(layout.channels));
}

template <class T>
int64_t BatchNormKernels<T>::forward_workspace(const BatchNormForward& a) {
  if (!a.training) return 0;
  int64_t bytes = 0;
  with_walk<T>(a.layout, {a.x, a.y, a.residual}, [&](auto walk) {
    bytes = workspace_bytes<T, typename decltype(walk)::type>(
        a.layout, [&](auto held) { return forward_hold<T, typename decltype(held)::type>(a.layout); });
  });
  return bytes;
}

template <class T>
void BatchNormKernels<T>::forward(const BatchNormForward& a, Path path) {
  with_walk<T>(a.layout, {a.x, a.y, a.residual},
               [&](auto walk) { launch_forward<T, typename decltype(walk)::type>(a, path); });
}

template <class T>
void BatchNormKernels<T>::statistics(const BatchNormForward& a) {
  with_walk<T>(a.layout, {a.x, a.y, a.residual}, [&](auto type) {
    using Walk = typename decltype(type)::type;
    const auto plan = plan_for<Walk>(a.layout);
    const Workspace<OpMath<T>> workspace(a.workspace, plan.partials(), a.layout.channels);
    launch_statistics<T, Walk>(a, plan, workspace);
    launch(record_statistics<T, Walk>, plan.groups, kThreads, shared_bytes<Walk>(plan, 0), a, plan, workspace);
  });
}

template <class T>
int64_t BatchNormKernels<T>::backward_workspace(const BatchNormBackward& a) {
  int64_t bytes = 0;
  with_walk<T>(a.layout, {a.x, a.dy, a.dx, a.dz, a.output, a.residual}, [&](auto walk) {
    bytes = workspace_bytes<T, typename decltype(walk)::type>(
        a.layout, [&](auto held) { return backward_hold<T, typename decltype(held)::type>(a.layout); });
  });
  return bytes;
}

template <class T>
void BatchNormKernels<T>::backward(const BatchNormBackward& a, Path path) {
  with_walk<T>(a.layout, {a.x, a.dy, a.dx, a.dz, a.output, a.residual},
               [&](auto walk) { launch_backward<T, typename decltype(walk)::type>(a, path); });
}

}  // namespace fusedtricks::cuda

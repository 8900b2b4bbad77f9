// Launches of the kernels of batch_norm_act_max_pool2d.
#pragma once

#include "cuda/batch_norm/launch_two_kernels.cuh"
#include "cuda/batch_norm_pool/kernels.cuh"
#include "cuda/batch_norm_pool/kernels_of_dtype.h"

namespace fusedtricks::cuda {

// Only ReLU, which is what residual networks use, is compiled in.
template <class V, class F>
void with_relu(const Activation& activation, const F& f) {
  if constexpr (std::is_same_v<V, float>) {
    if (activation.info().name == ReLU<V>::info.name)
      return f(FixedActivation<ReLU<V>>{ReLU<V>(activation.parameters)});
  }
  f(AnyActivation<V>{activation});
}

// Whether every pack consists of channels of one position and can be moved in one access.
template <class T>
bool are_packs_of_channels(const Layout& layout, std::initializer_list<const void*> tensors) {
  return layout.channels_last && layout.channels % kPack<T> == 0 && are_pack_aligned(tensors);
}

// Calls f(Type<Walk>) with the walk over the outputs. A thread has one output of a plane at a time, so that
// neighbouring threads read neighbouring elements.
template <class T, class F>
void with_output_walk(const Layout& outputs, std::initializer_list<const void*> tensors, const F& f) {
  if (are_packs_of_channels<T>(outputs, tensors)) return f(Type<RowsWalk<kPack<T>>>());
  if (outputs.channels_last) return f(Type<RowsWalk<1>>());
  f(Type<PlanesWalk<1>>());
}

template <class T>
void BatchNormPoolKernels<T>::forward(const BatchNormPoolForward& a) {
  with_output_walk<T>(a.outputs(), {a.norm.x, a.y, a.argmax}, [&](auto type) {
    using Walk = typename decltype(type)::type;
    const auto plan = plan_for<Walk>(a.outputs());
    with_relu<OpMath<T>>(a.norm.act, [&](auto act) {
      launch(pool_maxima<T, Walk, decltype(act)>, parts(plan), kThreads, shared_bytes<Walk>(plan, 0), a, plan, act);
    });
  });
}

// Where slope and constant of the channels are in the workspace: behind the partial results.
template <class T, class Walk>
int64_t slopes_at(const BatchNormPoolBackward& a) {
  return Workspace<OpMath<T>>::bytes(plan_for<Walk>(a.outputs()).partials(), a.norm.layout.channels);
}

template <class T>
int64_t BatchNormPoolKernels<T>::backward_workspace(const BatchNormPoolBackward& a) {
  int64_t bytes = 0;
  with_output_walk<T>(a.outputs(), {a.norm.x, a.dy, a.argmax}, [&](auto walk) {
    bytes = slopes_at<T, typename decltype(walk)::type>(a) + 2 * a.norm.layout.channels * int64_t(sizeof(OpMath<T>));
  });
  return bytes;
}

// Computes the gradients of the parameters, and slope and constant of every channel, which it returns.
template <class T, class Walk>
const OpMath<T>* launch_sums(const BatchNormPoolBackward& a) {
  using V = OpMath<T>;
  const auto plan = plan_for<Walk>(a.outputs());
  const Workspace<V> workspace(a.norm.workspace, plan.partials(), a.norm.layout.channels);
  V* slopes = reinterpret_cast<V*>(static_cast<char*>(a.norm.workspace) + slopes_at<T, Walk>(a));
  const size_t bytes = shared_bytes<Walk>(plan, merge_bytes<Sums<V>>(Walk::channels));
  if (a.norm.needs_sums()) {
    with_relu<V>(a.norm.act, [&](auto act) {
      launch(pool_sums<T, Walk, decltype(act)>, parts(plan), kThreads, bytes, a, plan, workspace, act);
    });
  }
  launch(finish_pool_sums<T, Walk>, plan.groups, kThreads, bytes, a, plan, workspace, slopes);
  return slopes;
}

template <class T, class Walk>
void launch_differentiate(const BatchNormPoolBackward& a, const OpMath<T>* slopes) {
  const auto plan = plan_for<Walk>(a.norm.layout);
  const bool channels = are_packs_of_channels<T>(a.norm.layout, {a.norm.x, a.norm.dx, a.dy, a.argmax});
  with_relu<OpMath<T>>(a.norm.act, [&](auto act) {
    using Act = decltype(act);
    auto* kernel = pool_differentiate<T, Walk, Act, false>;
    if constexpr (Walk::channels > 1) {
      if (channels) kernel = pool_differentiate<T, Walk, Act, true>;
    }
    launch(kernel, parts(plan), kThreads, shared_bytes<Walk>(plan, 0), a, plan, slopes, act);
  });
}

template <class T>
void BatchNormPoolKernels<T>::backward(const BatchNormPoolBackward& a) {
  const OpMath<T>* slopes = nullptr;
  with_output_walk<T>(a.outputs(), {a.norm.x, a.dy, a.argmax},
                      [&](auto walk) { slopes = launch_sums<T, typename decltype(walk)::type>(a); });
  if (!a.norm.dx) return;
  with_walk<T>(a.norm.layout, {a.norm.x, a.norm.dx},
               [&](auto walk) { launch_differentiate<T, typename decltype(walk)::type>(a, slopes); });
}

}  // namespace fusedtricks::cuda

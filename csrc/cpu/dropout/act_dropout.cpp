// dropout(act(x + bias)) + residual: the sweeps over the tensor. act_dropout_tiles.h computes their tiles.
#include "calls/act_dropout.h"

#include <optional>

#include "cpu/dropout/act_dropout_tiles.h"
#include "cpu/dropout/mask_sweeps.h"

namespace fusedtricks::cpu {
namespace {

constexpr int64_t kTask = 16384;  // elements of a task, unless there are sums for dbias

template <class T>
void forward(const ActDropoutForward& a, const Mask* mask) {
  const Forward<T> pass{a};
  const int64_t numel = a.tail.numel();
  if (!a.tail.in_order) {
    return for_row_blocks(a.tail.layout, [&](int64_t, int64_t sample, int64_t s0, int positions) {
      for_row_steps(*mask, a.tail.layout, sample, s0, positions,
                    [&](int64_t i, int64_t n, const uint32_t* word) { pass.write(i, n, word, pass.y + i); });
    });
  }
  const bool stream = worth_streaming(numel, sizeof(T));
  parallel_tasks((numel + kTask - 1) / kTask, [&](int64_t task) {
    for_steps(mask, task * kTask, std::min(numel, (task + 1) * kTask), [&](int64_t i, int64_t n, const uint32_t* word) {
      emit(pass.y + i, n, stream, [&](T* to, int64_t, int64_t) { pass.write(i, n, word, to); });
    });
    if (stream) stream_fence();
  });
}

template <class T>
void backward_channels_last(const Backward<T>& pass, const Mask& mask) {
  using V = OpMath<T>;
  const Layout& layout = pass.a.tail.layout;
  V* partial = static_cast<V*>(pass.a.workspace);
  for_row_blocks(layout, [&](int64_t block, int64_t sample, int64_t s0, int positions) {
    V* sums = pass.a.dbias ? partial + block * layout.channels : nullptr;
    if (sums) std::fill_n(sums, layout.channels, V(0));
    for_row_steps(mask, layout, sample, s0, positions, [&](int64_t i, int64_t n, const uint32_t* word) {
      Tile<V> g;
      pass.differentiate(i, n, word, g.value);
      if (pass.dx) pass.write(g.value, n, pass.dx + i);
      if (sums) add_to_sums(g.value, pass.a.tail.places, i, n, 0, sums);
    });
  });
  if (partial) finish_sums(partial, row_blocks(layout), layout.channels, static_cast<V*>(pass.a.dbias));
}

template <class T>
void backward_in_order(const Backward<T>& pass, const Mask* mask) {
  using V = OpMath<T>;
  const int64_t numel = pass.a.tail.numel();
  const bool stream = worth_streaming(numel, sizeof(T));
  const auto step = [&](int64_t i, int64_t n, const uint32_t* word, V* g) {
    pass.differentiate(i, n, word, g);
    if (pass.dx) emit(pass.dx + i, n, stream, [&](T* to, int64_t, int64_t) { pass.write(g, n, to); });
  };
  if (!pass.a.dbias) {
    return parallel_tasks((numel + kTask - 1) / kTask, [&](int64_t task) {
      for_steps(mask, task * kTask, std::min(numel, (task + 1) * kTask),
                [&](int64_t i, int64_t n, const uint32_t* word) {
                  Tile<V> g;
                  step(i, n, word, g.value);
                });
      if (stream) stream_fence();
    });
  }
  const SumPlan plan(pass.a.tail);
  V* partial = static_cast<V*>(pass.a.workspace);
  parallel_tasks(plan.rows() * plan.count_blocks(), [&](int64_t number) {
    const SumBlock block(plan, number);
    V* sums = partial + block.row * plan.count + block.c0;
    std::fill(sums, sums + block.c1 - block.c0, V(0));
    block.for_stretches(plan, [&](int64_t begin, int64_t end) {
      for_steps(mask, begin, end, [&](int64_t i, int64_t n, const uint32_t* word) {
        Tile<V> g;
        step(i, n, word, g.value);
        add_to_sums(g.value, pass.a.tail.places, i, n, block.c0, sums);
      });
    });
    if (stream) stream_fence();
  });
  finish_sums(partial, plan.rows(), plan.count, static_cast<V*>(pass.a.dbias));
}

// Everything is dropped: y is the residual, or 0.
template <class T>
void drop_all(const ActDropoutForward& a) {
  T* y = static_cast<T*>(a.y);
  if (a.residual)
    std::copy_n(static_cast<const T*>(a.residual), a.tail.numel(), y);
  else
    std::fill_n(y, a.tail.numel(), T(0));
}

std::optional<Mask> mask_of(const MaskSource& source) {
  return source ? std::optional<Mask>(Mask(source)) : std::nullopt;
}

void act_dropout_forward(const ActDropoutForward& a) {
  const auto mask = mask_of(a.mask);
  visit_dtype(a.tail.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (a.mask.rate.drops_all())
      drop_all<T>(a);
    else
      forward<T>(a, mask ? &*mask : nullptr);
  });
}

int64_t act_dropout_backward_workspace(const ActDropoutBackward& a) {
  if (!a.dbias) return 0;
  const int64_t element = a.tail.dtype == c10::ScalarType::Double ? sizeof(double) : sizeof(float);
  const int64_t rows = a.tail.in_order ? SumPlan(a.tail).rows() : row_blocks(a.tail.layout);
  return rows * a.tail.places.count * element;
}

void act_dropout_backward(const ActDropoutBackward& a) {
  const auto mask = mask_of(a.mask);
  visit_dtype(a.tail.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const Backward<T> pass{a};
    if (a.tail.in_order)
      backward_in_order(pass, mask ? &*mask : nullptr);
    else
      backward_channels_last(pass, *mask);
  });
}

const Provided provided[] = {
    {kernels::act_dropout_forward, act_dropout_forward},
    {kernels::act_dropout_backward_workspace, act_dropout_backward_workspace},
    {kernels::act_dropout_backward, act_dropout_backward},
};

}  // namespace
}  // namespace fusedtricks::cpu

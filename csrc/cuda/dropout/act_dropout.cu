// dropout(act(x + bias)) + residual, in one pass each way. Where the bias has a gradient, the backward leaves partial
// sums for it, which a second, small kernel merges.
#include "calls/act_dropout.h"

#include "core/dtypes.h"
#include "cuda/device/activation_packs.cuh"
#include "cuda/device/choose_walk.cuh"
#include "cuda/dropout/bias.cuh"
#include "cuda/dropout/mask_sweeps.cuh"

namespace fusedtricks::cuda {
namespace {

// Computes y and writes it.
template <class T>
struct WriteResult {
  using V = OpMath<T>;

  template <int n>
  struct Packs {
    Pack<T, n> x, residual;
  };

  const T *x, *residual;
  T* y;
  int64_t numel;
  Bias<V> bias;
  AnyActivation<V> act;
  Drop<V> drop;

  explicit WriteResult(const ActDropoutForward& a)
      : x(static_cast<const T*>(a.x)),
        residual(static_cast<const T*>(a.residual)),
        y(static_cast<T*>(a.y)),
        numel(a.tail.numel()),
        bias{static_cast<const V*>(a.bias), a.tail.places},
        act{a.act},
        drop(a.mask.rate) {}

  template <int n>
  __device__ __forceinline__ Packs<n> load(const Piece<n>& piece) const {
    Packs<n> packs;
    packs.x = load_piece<Read::kOnce>(x, piece, numel);
    if (residual) packs.residual = load_piece<Read::kOnce>(residual, piece, numel);
    return packs;
  }
  template <int n>
  __device__ __forceinline__ void store(const Piece<n>& piece, const Packs<n>& packs, const bool (&keep)[n]) const {
    V z[n];
    unpack(packs.x, z);
    bias.add(piece.index, z);
    activate(act, z);
#pragma unroll
    for (int e = 0; e < n; ++e) {
      z[e] = drop(z[e], keep[e]);
      if (residual) z[e] += fusedtricks::load(packs.residual.value[e]);
    }
    store_piece(y, piece, rounded_pack<T>(z));
  }
};

// Computes the gradient of x and writes it.
template <class T>
struct WriteGradient {
  using V = OpMath<T>;

  template <int n>
  struct Packs {
    Pack<T, n> dy, saved;
  };

  const T *dy, *saved;  // saved may be null
  T* dx;                // may be null
  int64_t numel;
  Bias<V> bias;    // only if x is saved
  V result_scale;  // undoes the scale of a saved y
  bool is_result;
  AnyActivation<V> act;
  Drop<V> drop;

  explicit WriteGradient(const ActDropoutBackward& a)
      : dy(static_cast<const T*>(a.dy)),
        saved(static_cast<const T*>(a.saved)),
        dx(static_cast<T*>(a.dx)),
        numel(a.tail.numel()),
        bias{a.kept == Kept::kInput ? static_cast<const V*>(a.bias) : nullptr, a.tail.places},
        result_scale(V(1 / a.mask.rate.scale)),
        is_result(a.kept == Kept::kResult),
        act{a.act},
        drop(a.mask.rate) {}

  template <int n>
  __device__ __forceinline__ Packs<n> load(const Piece<n>& piece) const {
    Packs<n> packs;
    packs.dy = load_piece<Read::kOnce>(dy, piece, numel);
    if (saved) packs.saved = load_piece<Read::kOnce>(saved, piece, numel);
    return packs;
  }
  template <int n>
  __device__ __forceinline__ void differentiate(const Piece<n>& piece, const Packs<n>& packs, const bool (&keep)[n],
                                                V (&g)[n]) const {
    unpack(packs.dy, g);
#pragma unroll
    for (int e = 0; e < n; ++e) g[e] = drop(g[e], keep[e]);
    if (!saved) return;
    V k[n];
    unpack(packs.saved, k);
    if (is_result) {
#pragma unroll
      for (int e = 0; e < n; ++e) k[e] *= result_scale;
      multiply_by_derivative_of_result(act, g, k);
    } else {
      bias.add(piece.index, k);
      multiply_by_derivative(act, g, k);
    }
  }
  template <int n>
  __device__ __forceinline__ void store(const Piece<n>& piece, const Packs<n>& packs, const bool (&keep)[n]) const {
    V g[n];
    differentiate(piece, packs, keep, g);
    store_piece(dx, piece, rounded_pack<T>(g));
  }
};

// dx, and for every value of the bias the sum of dx over its elements in each chunk.
template <class T, class Walk>
__global__ void __launch_bounds__(kThreads, kMaskedBlocks)
    sum_gradients(WriteGradient<T> write, typename Walk::Plan plan, Layout layout, bool in_order, MaskSource source,
                  BiasPartials<OpMath<T>> out) {
  using V = OpMath<T>;
  constexpr int n = Walk::pack, unroll = 2;
  const Mask mask = read_mask(source);
  const Part part(plan, /*reversed=*/false);
  Walk walk(plan, part.chunk, part.group, /*reversed=*/false);
  Sum<V> sums[Walk::channels];
  for_pieces<unroll>(walk, plan, part.chunk, [&](const auto& pieces) {
    constexpr int count = kCount<decltype(pieces)>;
    typename WriteGradient<T>::template Packs<n> packs[count];
#pragma unroll
    for (int u = 0; u < count; ++u) packs[u] = write.load(pieces[u]);
#pragma unroll
    for (int u = 0; u < count; ++u) {
      const uint32_t kept = !source    ? ~0u
                            : in_order ? kept_in_order<n>(mask, pieces[u].index)
                                       : kept_of_row<n>(mask, layout, pieces[u].index);
      bool keep[n];
#pragma unroll
      for (int e = 0; e < n; ++e) keep[e] = kept >> e & 1;
      V g[n];
      write.differentiate(pieces[u], packs[u], keep, g);
      if (write.dx) store_piece(write.dx, pieces[u], rounded_pack<T>(g));
#pragma unroll
      for (int e = 0; e < n; ++e) {
        if (pieces[u].has(e)) sums[Walk::channel_of(e)].value += g[e];
      }
    }
  });
  leave_bias_sums(sums, plan, walk, part.chunk, out, dynamic_shared<char>());
}

// The tensor seen as one whose channels are the values of the bias.
Layout bias_layout(const TailLayout& tail) {
  const int64_t outer = tail.numel() / (tail.places.count * tail.places.inner);
  return {outer, tail.places.count, tail.places.inner, tail.places.inner == 1};
}

// A few blocks for every multiprocessor, fewer where they would have too little work.
template <class Walk>
typename Walk::Plan bias_plan(const Layout& layout) {
  constexpr int64_t blocks = 4, steps = 8;
  return with_blocks(Walk::Plan::make(layout), blocks * multiprocessors(), steps);
}

template <class T, class F>
void with_bias_walk(const ActDropoutBackward& a, const F& f) {
  with_walk<T>(bias_layout(a.tail), {a.dy, a.saved, a.dx}, f);
}

template <class T>
void backward_with_sums(const ActDropoutBackward& a) {
  using V = OpMath<T>;
  with_bias_walk<T>(a, [&](auto type) {
    using Walk = typename decltype(type)::type;
    const auto plan = bias_plan<Walk>(bias_layout(a.tail));
    const BiasPartials<V> partials{static_cast<V*>(a.workspace), a.tail.places.count};
    launch(sum_gradients<T, Walk>, parts(plan), kThreads, merge_bytes<Sum<V>>(Walk::channels), WriteGradient<T>(a),
           plan, a.tail.layout, a.tail.in_order, a.mask, partials);
    finish_bias(plan.partials(), partials, static_cast<V*>(a.dbias));
  });
}

void act_dropout_forward(const ActDropoutForward& a) {
  visit_dtype(a.tail.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_masked<T>(a.tail.layout, a.tail.in_order, are_pack_aligned({a.x, a.y, a.residual}), a.mask,
                     WriteResult<T>(a));
  });
}

int64_t act_dropout_backward_workspace(const ActDropoutBackward& a) {
  if (!a.dbias) return 0;
  int64_t bytes = 0;
  visit_dtype(a.tail.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    with_bias_walk<T>(a, [&](auto walk) {
      const auto plan = bias_plan<typename decltype(walk)::type>(bias_layout(a.tail));
      bytes = plan.partials() * a.tail.places.count * int64_t(sizeof(OpMath<T>));
    });
  });
  return bytes;
}

void act_dropout_backward(const ActDropoutBackward& a) {
  visit_dtype(a.tail.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (a.dbias) return backward_with_sums<T>(a);
    launch_masked<T>(a.tail.layout, a.tail.in_order, are_pack_aligned({a.dy, a.saved, a.dx}), a.mask,
                     WriteGradient<T>(a));
  });
}

const Provided provided[] = {
    {kernels::act_dropout_forward, act_dropout_forward},
    {kernels::act_dropout_backward_workspace, act_dropout_backward_workspace},
    {kernels::act_dropout_backward, act_dropout_backward},
};

}  // namespace
}  // namespace fusedtricks::cuda

// Activations on their own.
#include "calls/activation.h"

#include "core/dtypes.h"
#include "cuda/device/activation_packs.cuh"
#include "cuda/device/flat.cuh"

namespace fusedtricks::cuda {
namespace {

template <class T, int n, class Act>
__global__ void __launch_bounds__(kThreads) activate_elements(const T* x, T* y, int64_t count, Act act) {
  Piece<n> pieces[kFlatUnroll];
  Pack<T, n> packs[kFlatUnroll];
  flat_pieces(count, pieces);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) packs[u] = load_piece<Read::kOnce>(x, pieces[u], count);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    OpMath<T> z[n];
    unpack(packs[u], z);
    activate(act, z);
    store_piece(y, pieces[u], rounded_pack<T>(z));
  }
}

// What a gradient is multiplied by: the activation's derivative, or the derivative of that.
enum class Factor { kGrad, kGradGrad };

template <class T, int n, class Act, Factor factor>
__global__ void __launch_bounds__(kThreads)
    multiply_gradient(const T* g, const T* kept, T* out, int64_t count, Act activation) {
  Piece<n> pieces[kFlatUnroll];
  Pack<T, n> gradients[kFlatUnroll], packs[kFlatUnroll];
  flat_pieces(count, pieces);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    gradients[u] = load_piece<Read::kOnce>(g, pieces[u], count);
    packs[u] = load_piece<Read::kOnce>(kept, pieces[u], count);
  }
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    OpMath<T> d[n], k[n];
    unpack(gradients[u], d);
    unpack(packs[u], k);
    activation.visit([&](const auto& act) {
#pragma unroll
      for (int e = 0; e < n; ++e) {
        const OpMath<T> y = act.keeps_result() ? k[e] : act.forward(k[e]);
        d[e] *= factor == Factor::kGrad ? act.grad(k[e], y) : act.grad_grad(k[e], y);
      }
    });
    store_piece(out, pieces[u], rounded_pack<T>(d));
  }
}

// Activations can be compiled in only where elements move by packs, to keep the number of kernels small; and not for
// the derivative of the derivative, which is rarely needed.
template <Factor factor>
void launch_multiply(const ActivationCall& call, const void* g, const void* kept, void* out) {
  with_flat_pack(call.dtype, are_pack_aligned({g, kept, out}), [&](auto type, auto pack) {
    using T = typename decltype(type)::type;
    constexpr int n = decltype(pack)::value;
    with_activation<OpMath<T>, (n > 1 && factor == Factor::kGrad)>(call.act, [&](auto act) {
      launch(multiply_gradient<T, n, decltype(act), factor>, flat_blocks(call.n, n), kThreads, 0,
             static_cast<const T*>(g), static_cast<const T*>(kept), static_cast<T*>(out), call.n, act);
    });
  });
}

void activation_forward(const ActivationCall& call, const void* x, void* y) {
  with_flat_pack(call.dtype, are_pack_aligned({x, y}), [&](auto type, auto pack) {
    using T = typename decltype(type)::type;
    constexpr int n = decltype(pack)::value;
    with_activation<OpMath<T>, (n > 1)>(call.act, [&](auto act) {
      launch(activate_elements<T, n, decltype(act)>, flat_blocks(call.n, n), kThreads, 0, static_cast<const T*>(x),
             static_cast<T*>(y), call.n, act);
    });
  });
}

const Provided provided[] = {
    {kernels::activation_forward, activation_forward},
    {kernels::activation_backward, launch_multiply<Factor::kGrad>},
    {kernels::activation_grad_grad, launch_multiply<Factor::kGradGrad>},
};

}  // namespace
}  // namespace fusedtricks::cuda

// The activations alone.
#include "calls/activation.h"

#include "core/dtypes.h"
#include "cuda/device/activation_packs.cuh"
#include "cuda/device/flat.cuh"

namespace fusedtricks::cuda {
namespace {

template <class T, int n, class Act>
__global__ void __launch_bounds__(kThreads) forward(const T* x, T* y, int64_t count, Act act) {
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

// What the gradient is multiplied by: the derivative, or the derivative of that.
enum class Factor { kDerivative, kSlope };

template <class T, int n, class Act, Factor factor>
__global__ void __launch_bounds__(kThreads) multiply(const T* g, const T* kept, T* out, int64_t count, Act activation) {
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
        d[e] *= factor == Factor::kDerivative ? act.grad(k[e], y) : act.grad_grad(k[e], y);
      }
    });
    store_piece(out, pieces[u], rounded_pack<T>(d));
  }
}

// Calls f(Type<T>, elements of a pack) for the dtype, and packs where all tensors begin at a multiple of one.
template <class F>
void with_pack(c10::ScalarType dtype, std::initializer_list<const void*> tensors, const F& f) {
  const bool aligned = std::all_of(tensors.begin(), tensors.end(), is_pack_aligned);
  visit_dtype(dtype, [&](auto type) {
    constexpr int n = kPack<typename decltype(type)::type>;
    if (aligned)
      f(type, std::integral_constant<int, n>());
    else
      f(type, std::integral_constant<int, 1>());
  });
}

// The activations have kernels of their own where elements move by packs, but not for the derivative of the derivative.
template <Factor factor>
void launch_multiply(const ActivationCall& call, const void* g, const void* kept, void* out) {
  with_pack(call.dtype, {g, kept, out}, [&](auto type, auto pack) {
    using T = typename decltype(type)::type;
    constexpr int n = decltype(pack)::value;
    with_activation<OpMath<T>, (n > 1 && factor == Factor::kDerivative)>(call.act, [&](auto act) {
      launch(multiply<T, n, decltype(act), factor>, flat_blocks(call.n, n), kThreads, 0, static_cast<const T*>(g),
             static_cast<const T*>(kept), static_cast<T*>(out), call.n, act);
    });
  });
}

}  // namespace
}  // namespace fusedtricks::cuda

namespace fusedtricks::backend {

void activation_forward(const ActivationCall& call, const void* x, void* y) {
  cuda::with_pack(call.dtype, {x, y}, [&](auto type, auto pack) {
    using T = typename decltype(type)::type;
    constexpr int n = decltype(pack)::value;
    cuda::with_activation<OpMath<T>, (n > 1)>(call.act, [&](auto act) {
      cuda::launch(cuda::forward<T, n, decltype(act)>, cuda::flat_blocks(call.n, n), cuda::kThreads, 0,
                   static_cast<const T*>(x), static_cast<T*>(y), call.n, act);
    });
  });
}

void activation_backward(const ActivationCall& call, const void* dy, const void* kept, void* dx) {
  cuda::launch_multiply<cuda::Factor::kDerivative>(call, dy, kept, dx);
}

void activation_backward_slope(const ActivationCall& call, const void* g, const void* kept, void* out) {
  cuda::launch_multiply<cuda::Factor::kSlope>(call, g, kept, out);
}

}  // namespace fusedtricks::backend

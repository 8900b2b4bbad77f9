// Dropout: one pass, the mask computed from (seed, offset, logical index) wherever it is needed. The backward is the
// same pass over dy.
#include "calls/dropout.h"

#include "core/dtypes.h"
#include "cuda/dropout/mask_sweeps.cuh"

namespace fusedtricks::cuda {
namespace {

template <class T>
struct DropElements {
  template <int n>
  using Packs = Pack<T, n>;

  const T* x;
  T* y;
  int64_t numel;
  Drop<OpMath<T>> drop;

  template <int n>
  __device__ __forceinline__ Pack<T, n> load(const Piece<n>& piece) const {
    return load_piece<Read::kOnce>(x, piece, numel);
  }
  template <int n>
  __device__ __forceinline__ void store(const Piece<n>& piece, const Pack<T, n>& pack, const bool (&keep)[n]) const {
    OpMath<T> values[n];
    unpack(pack, values);
#pragma unroll
    for (int e = 0; e < n; ++e) values[e] = drop(values[e], keep[e]);
    store_piece(y, piece, rounded_pack<T>(values));
  }
};

void drop(const DropoutCall& call, const MaskSource& source) {
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const DropElements<T> operation{static_cast<const T*>(call.x), static_cast<T*>(call.y), call.numel(),
                                    Drop<OpMath<T>>(call.rate)};
    const bool aligned = is_pack_aligned(call.x) && is_pack_aligned(call.y);
    launch_masked<T>(call.layout, call.in_logical_order, aligned, source, operation);
  });
}

}  // namespace
}  // namespace fusedtricks::cuda

namespace fusedtricks::backend {

void dropout_forward(const DropoutCall& call, std::optional<int64_t> seed, int64_t* rng_state) {
  cuda::drop(call, cuda::MaskSource::drawn(call.rate, seed, rng_state));
}

void dropout_backward(const DropoutCall& call, const int64_t* rng_state) {
  if (call.numel()) cuda::drop(call, cuda::MaskSource::recorded_in(call.rate, rng_state));
}

}  // namespace fusedtricks::backend

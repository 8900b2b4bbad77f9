// Dropout in one pass over x. The backward is the same pass over dy.
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

void dropout(const DropoutCall& call) {
  if (!call.numel() && !call.mask.record) return;  // an empty tensor's mask is recorded all the same
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const DropElements<T> operation{static_cast<const T*>(call.x), static_cast<T*>(call.y), call.numel(),
                                    Drop<OpMath<T>>(call.mask.rate)};
    const bool aligned = are_pack_aligned({call.x, call.y});
    launch_masked<T>(call.layout, call.in_logical_order, aligned, call.mask, operation);
  });
}

const Provided provided(kernels::dropout, dropout);

}  // namespace
}  // namespace fusedtricks::cuda

// Dropout inside the kernels of batch_norm_act: it masks and scales the values of a pack in registers, before they are
// rounded.
#pragma once

#include "cuda/device/walk.cuh"
#include "cuda/dropout/mask.cuh"

namespace fusedtricks::cuda {

// A function that changes nothing.
struct AsTheyAre {
  template <class... Any>
  __device__ __forceinline__ void operator()(const Any&...) const {}
};

// For kernels without dropout.
struct NoDropout {
  static constexpr bool drops = false;

  template <class Call>
  __device__ __forceinline__ AsTheyAre begin(const Call&) const {
    return {};
  }
};

// Dropout with the mask that a thread has read.
template <class V>
struct Dropping {
  Mask mask;
  Layout layout;
  V scale;
  bool masks;

  template <int n>
  __device__ __forceinline__ void operator()(const Piece<n>& piece, V (&values)[n]) const {
    const uint32_t kept = !masks                                         ? ~0u
                          : layout.channels_last && layout.positions > 1 ? kept_of_row<n>(mask, layout, piece.index)
                                                                         : kept_in_order<n>(mask, piece.index);
#pragma unroll
    for (int e = 0; e < n; ++e) values[e] = kept >> e & 1 ? values[e] * scale : V(0);
  }
};

// For kernels with dropout. masks: if not, it only scales, because the output tells what was dropped.
template <class V>
struct Dropout {
  static constexpr bool drops = true;

  V scale;
  bool masks;

  template <class Call>
  __device__ __forceinline__ Dropping<V> begin(const Call& a) const {
    return {masks ? read_mask(a.mask) : Mask{}, a.layout, scale, masks};
  }
};

}  // namespace fusedtricks::cuda

// Dropout inside the kernels of batch_norm_act: the values of a pack are masked and scaled in registers, in the compute
// type.
#pragma once

#include "cuda/dropout/mask.cuh"
#include "cuda/device/walk.cuh"

namespace fusedtricks::cuda {

// What leaves values as they are.
struct AsTheyAre {
  template <class... Any>
  __device__ __forceinline__ void operator()(const Any&...) const {}
};

// A kernel without dropout.
struct NoDropout {
  static constexpr bool drops = false;

  __device__ __forceinline__ AsTheyAre begin() const { return {}; }
};

// A mask in a kernel.
template <class V>
struct Dropping {
  Mask mask;
  Layout layout;
  V scale;
  bool masks;

  template <int n>
  __device__ __forceinline__ void operator()(const Piece<n>& piece, V (&values)[n]) const {
    const uint32_t kept = !masks                                ? ~0u
                          : layout.rows && layout.positions > 1 ? kept_of_row<n>(mask, layout, piece.index)
                                                                : kept_in_order<n>(mask, piece.index);
#pragma unroll
    for (int e = 0; e < n; ++e) values[e] = kept >> e & 1 ? values[e] * scale : V(0);
  }
};

// What a kernel with dropout is given. masks: else it scales alone, what was dropped being known otherwise.
template <class V>
struct Dropout {
  static constexpr bool drops = true;

  MaskSource source;
  Layout layout;
  V scale;
  bool masks;

  __device__ __forceinline__ Dropping<V> begin() const { return {masks ? source.get() : Mask{}, layout, scale, masks}; }
};

}  // namespace fusedtricks::cuda

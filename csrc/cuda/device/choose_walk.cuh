// Which walk over a tensor a kernel is launched with.
#pragma once

#include "core/dtypes.h"
#include "cuda/device/planes_walk.cuh"
#include "cuda/device/rows_walk.cuh"

namespace fusedtricks::cuda {

// Calls f(Type<Walk>) with the walk for the layout. It moves whole packs where every tensor is aligned for that, single
// elements otherwise.
template <class T, class F>
void with_walk(const Layout& layout, std::initializer_list<const void*> tensors, const F& f) {
  const bool aligned = are_pack_aligned(tensors);
  if (layout.channels_last && aligned) return f(Type<RowsWalk<kPack<T>>>());
  if (layout.channels_last) return f(Type<RowsWalk<1>>());
  if (aligned) return f(Type<PlanesWalk<kPack<T>>>());
  f(Type<PlanesWalk<1>>());
}

}  // namespace fusedtricks::cuda

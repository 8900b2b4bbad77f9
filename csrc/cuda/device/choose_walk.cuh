// Which walk over a tensor a kernel is launched with.
#pragma once

#include "core/dtypes.h"
#include "cuda/device/walk.cuh"

namespace fusedtricks::cuda {

// Calls f(walk) with the walk for that layout: by packs where every tensor begins at a multiple of one.
template <class T, class F>
void with_walk(const Layout& layout, std::initializer_list<const void*> tensors, const F& f) {
  bool aligned = true;
  for (const void* t : tensors) aligned = aligned && (!t || is_pack_aligned(t));
  if (layout.rows && aligned) return f(Type<RowsWalk<kPack<T>>>());
  if (layout.rows) return f(Type<RowsWalk<1>>());
  if (aligned) return f(Type<PlanesWalk<kPack<T>>>());
  f(Type<PlanesWalk<1>>());
}

}  // namespace fusedtricks::cuda

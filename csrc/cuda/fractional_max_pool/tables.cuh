// Tables that say for every plane where its windows begin, and which window is the first to cover a position.
#pragma once

#include "cuda/fractional_max_pool/positions.cuh"

namespace fusedtricks::cuda {

// Numbers of every plane, `lengths[d]` for each dimension d. The numbers of a dimension are consecutive entries; either
// the entries of a plane are next to each other or the planes of an entry, whichever the tensor has.
struct PlaneTable {
  int32_t* data;
  int64_t planes, before[kDimensions], entries;  // before: entries of the dimensions before; entries: of a plane
  bool channels_last;

  PlaneTable(const PoolShape& shape, const int64_t (&lengths)[kDimensions], int32_t* data_)
      : data(data_), planes(shape.planes()), entries(0), channels_last(shape.channels_last) {
    for (int d = 0; d < kDimensions; ++d) {
      before[d] = entries;
      entries += lengths[d];
    }
  }

  FT_INLINE int64_t count() const { return planes * entries; }
  // The first number of a plane's dimension; the others follow at multiples of step().
  FT_INLINE int32_t* of(int64_t plane, int dimension) const {
    const int64_t first = of_dimension(before, dimension);
    return channels_last ? data + first * planes + plane : data + plane * entries + first;
  }
  FT_INLINE int64_t step() const { return channels_last ? planes : 1; }
};

// The first positions of all windows, at the beginning of the call's workspace. Launches the kernel that writes them,
// which also records the call's random stream if the call draws it.
PlaneTable make_starts(const PoolCall& call);

// For every position of the input the first window that ends behind it, after the starts in the workspace. There may be
// none; the number is then that of the windows.
PlaneTable make_firsts(const PoolCall& call, const PlaneTable& starts);

}  // namespace fusedtricks::cuda

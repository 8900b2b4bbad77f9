// Masks of dropout: words of the Philox stream wherever they are needed, recomputed from (seed, offset, logical index).
#pragma once

#include "../element.h"
#include "../philox.h"
#include "platform.cuh"
#include "random.h"

namespace fusedtricks::cuda {

struct Mask {
  uint64_t seed, offset;
  uint32_t threshold;
  bool drops_all;  // whatever the threshold says

  FT_INLINE bool keeps(uint32_t word) const { return word >= threshold && !drops_all; }
};

// A forward draws its mask and has one thread record it; a backward reads what was recorded.
struct MaskSource {
  RandomSource source;
  const int64_t* recorded;
  int64_t* record;
  uint32_t threshold;
  bool drops_all;

  __device__ __forceinline__ Mask get() const {
    if (recorded) return {uint64_t(recorded[0]), uint64_t(recorded[1]), threshold, drops_all};
    const Mask mask{source.get_seed(), source.get_offset(), threshold, drops_all};
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      record[0] = int64_t(mask.seed);
      record[1] = int64_t(mask.offset);
    }
    return mask;
  }
};

// x * scale where kept, +0 where not, even of a NaN.
template <class T, class V>
__device__ __forceinline__ T dropped(T x, V scale, bool keep) {
  return keep ? store<T>(load(x) * scale) : store<T>(V(0));
}

// A word whose number is not known before the kernel runs, without an array in memory.
__device__ __forceinline__ uint32_t word_at(const PhiloxBlock& block, int number) {
  return number < 2 ? (number == 0 ? block.word[0] : block.word[1]) : (number == 2 ? block.word[2] : block.word[3]);
}

}  // namespace fusedtricks::cuda

// Where the random bits of a call come from: what the host hands to the kernels of any device.
#pragma once

#include "core/drop_rate.h"
#include "core/macros.h"

namespace fusedtricks {

// Seed and offset of a Philox stream: values, or the places where every replay of a CUDA graph puts them.
struct RandomSource {
  uint64_t seed = 0, offset = 0;
  const int64_t *seed_at = nullptr, *offset_at = nullptr;

  FT_INLINE uint64_t get_seed() const { return seed_at ? uint64_t(*seed_at) : seed; }
  // While a graph is captured, `offset` counts from where the graph begins.
  FT_INLINE uint64_t get_offset() const { return offset_at ? uint64_t(*offset_at) + offset : offset; }
};

// The mask of a call. A forward draws it, and its kernel records seed and offset in two numbers on the tensor's device;
// a backward reads what was recorded. A call without a mask has neither.
struct MaskSource {
  DropRate rate{};
  RandomSource drawn{};
  int64_t* record = nullptr;
  const int64_t* recorded = nullptr;

  FT_INLINE explicit operator bool() const { return record || recorded; }
  FT_INLINE uint64_t seed() const { return recorded ? uint64_t(recorded[0]) : drawn.get_seed(); }
  FT_INLINE uint64_t offset() const { return recorded ? uint64_t(recorded[1]) : drawn.get_offset(); }
  // By one thread alone.
  FT_INLINE void write_record() const {
    if (!record) return;
    record[0] = int64_t(drawn.get_seed());
    record[1] = int64_t(drawn.get_offset());
  }
};

}  // namespace fusedtricks

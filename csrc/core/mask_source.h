// Where the random bits of a call come from. The operators hand this to the kernels of every device.
#pragma once

#include "core/drop_rate.h"
#include "core/macros.h"

namespace fusedtricks {

// Seed and offset of a Philox stream: values or, while a CUDA graph is captured, the addresses where each replay of the
// graph puts them.
struct RandomSource {
  uint64_t seed = 0, offset = 0;
  const int64_t *seed_at = nullptr, *offset_at = nullptr;

  FT_INLINE uint64_t get_seed() const { return seed_at ? uint64_t(*seed_at) : seed; }
  // With offset_at, `offset` counts from the start of the graph.
  FT_INLINE uint64_t get_offset() const { return offset_at ? uint64_t(*offset_at) + offset : offset; }
};

// The mask of a call. A forward is given `record`: its kernel uses the drawn seed and offset, and writes them to these
// two numbers on the tensor's device. A backward is given `recorded`, from which it reads them. A call without a mask
// has neither.
struct MaskSource {
  DropRate rate{};
  RandomSource drawn{};
  int64_t* record = nullptr;
  const int64_t* recorded = nullptr;

  FT_INLINE explicit operator bool() const { return record || recorded; }
  FT_INLINE uint64_t seed() const { return recorded ? uint64_t(recorded[0]) : drawn.get_seed(); }
  FT_INLINE uint64_t offset() const { return recorded ? uint64_t(recorded[1]) : drawn.get_offset(); }
  // Call it on one thread only.
  FT_INLINE void write_record() const {
    if (!record) return;
    record[0] = int64_t(drawn.get_seed());
    record[1] = int64_t(drawn.get_offset());
  }
};

}  // namespace fusedtricks

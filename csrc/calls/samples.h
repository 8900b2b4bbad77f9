// What the kernels that move whole samples of a batch are given: raw memory. A sample is contiguous.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

#include "calls/kernel.h"

namespace fusedtricks {

struct SamplesCall {
  c10::ScalarType dtype;
  int64_t samples;   // of the batch
  int64_t elements;  // of a sample
  int64_t rows;      // samples that are chosen
  const int64_t* index;
  double scale;
};

namespace kernels {

// out = base, with scale * rows[j] added to its sample index[j]. No base stands for zeros. `table` is scratch memory,
// a number for each sample of the batch.
inline const Kernel<void(const SamplesCall& call, const void* base, const void* rows, int64_t* table, void* out)>
    add_samples{"add_samples"};
// out[j] = scale * x[index[j]].
inline const Kernel<void(const SamplesCall& call, const void* x, void* out)> select_samples{"select_samples"};

}  // namespace kernels
}  // namespace fusedtricks

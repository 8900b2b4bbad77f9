// Arguments of the kernels that select and add whole samples of a batch. Samples are contiguous.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

#include "calls/kernel.h"

namespace fusedtricks {

struct SamplesCall {
  c10::ScalarType dtype;
  int64_t samples;   // of the batch
  int64_t elements;  // of a sample
  int64_t rows;      // number of selected samples, the length of index
  const int64_t* index;
  double scale;
};

namespace kernels {

// out = base, with scale * rows[j] added to sample index[j]. A null base means zeros. `table` is scratch memory for one
// number per sample of the batch.
inline const Kernel<void(const SamplesCall& call, const void* base, const void* rows, int64_t* table, void* out)>
    add_samples{"add_samples"};
// out[j] = scale * x[index[j]].
inline const Kernel<void(const SamplesCall& call, const void* x, void* out)> select_samples{"select_samples"};

}  // namespace kernels
}  // namespace fusedtricks

// What the kernels that move whole samples of a batch are given: raw memory. A sample is contiguous.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

namespace fusedtricks {

struct SamplesCall {
  c10::ScalarType dtype;
  int64_t samples;   // of the batch
  int64_t elements;  // of a sample
  int64_t rows;      // samples that are chosen
  const int64_t* index;
  double scale;
};

namespace backend {

// out = base, with scale * rows[j] added to its sample index[j]. No base stands for zeros. `table` is scratch memory,
// a number for each sample of the batch.
void add_samples(const SamplesCall& call, const void* base, const void* rows, int64_t* table, void* out);
// out[j] = scale * x[index[j]].
void select_samples(const SamplesCall& call, const void* x, void* out);

}  // namespace backend
}  // namespace fusedtricks

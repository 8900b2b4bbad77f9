// Selects and adds whole samples of a batch. Every element of the result is written once, whether it is copied or added
// to. Tasks are spans of equal length, however long a sample is.
#include "calls/samples.h"

#include <c10/util/Exception.h>

#include <vector>

#include "core/scalar.h"
#include "cpu/parallel_tasks.h"
#include "cpu/simd/streams.h"

namespace fusedtricks::cpu {
namespace {

constexpr int64_t kSpan = 16384;  // elements of a task
constexpr int64_t kAbsent = -1;

// table[i] = j where index[j] == i, otherwise kAbsent. Raises IndexError for an index beyond the batch, ValueError for
// a repeated one.
void fill_table(const SamplesCall& call, int64_t* table) {
  std::fill_n(table, call.samples, kAbsent);
  for (int64_t j = 0; j < call.rows; ++j) {
    const int64_t i = call.index[j];
    TORCH_CHECK_INDEX(0 <= i && i < call.samples, "index[", j, "] is ", i, "; expected 0 to ", call.samples - 1);
    TORCH_CHECK_VALUE(table[i] == kAbsent, "index names sample ", i, " twice; its numbers have to be different");
    table[i] = j;
  }
}

// to = base + scale * row. A null base means zeros.
template <class T>
void add_span(const T* base, const T* row, OpMath<T> scale, T* to, int64_t n) {
  if (base) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = store<T>(load(base[i]) + scale * load(row[i]));
  } else if (scale == 1) {
    std::memcpy(to, row, n * sizeof(T));
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = store<T>(scale * load(row[i]));
  }
}

template <class T>
void copy_span(const T* base, T* to, int64_t n) {
  if (base)
    std::memcpy(to, base, n * sizeof(T));
  else
    std::fill_n(to, n, T(0));
}

// Writes `samples` samples of `elements` elements by calls of part(sample, first, to, count), each of which writes
// elements [first, first + count) of one sample to `to`.
template <class T, class Part>
void for_parts(T* out, int64_t samples, int64_t elements, const Part& part) {
  const int64_t n = samples * elements;
  const bool stream = worth_streaming(n, sizeof(T));
  parallel_tasks((n + kSpan - 1) / kSpan, [&](int64_t task) {
    const int64_t start = task * kSpan;
    emit(out + start, std::min(kSpan, n - start), stream, [&](T* to, int64_t i, int64_t left) {
      int64_t sample = (start + i) / elements, first = (start + i) % elements;
      for (; left > 0; ++sample, first = 0) {
        const int64_t count = std::min(left, elements - first);
        part(sample, first, to, count);
        to += count, left -= count;
      }
    });
    if (stream) stream_fence();
  });
}

void add_samples(const SamplesCall& call, const void* base, const void* rows, int64_t* table, void* out) {
  fill_table(call, table);
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T *x = static_cast<const T*>(base), *row = static_cast<const T*>(rows);
    const auto scale = OpMath<T>(call.scale);
    for_parts(static_cast<T*>(out), call.samples, call.elements,
              [&](int64_t sample, int64_t first, T* to, int64_t count) {
                const T* from = x ? x + sample * call.elements + first : nullptr;
                const int64_t j = table[sample];
                if (j == kAbsent) return copy_span(from, to, count);
                add_span(from, row + j * call.elements + first, scale, to, count);
              });
  });
}

void select_samples(const SamplesCall& call, const void* x, void* out) {
  std::vector<int64_t> table(call.samples);
  fill_table(call, table.data());
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* from = static_cast<const T*>(x);
    const auto scale = OpMath<T>(call.scale);
    for_parts(static_cast<T*>(out), call.rows, call.elements, [&](int64_t j, int64_t first, T* to, int64_t count) {
      const T* row = from + call.index[j] * call.elements + first;
      add_span<T>(nullptr, row, scale, to, count);
    });
  });
}

const Provided provided[] = {
    {kernels::add_samples, add_samples},
    {kernels::select_samples, select_samples},
};

}  // namespace
}  // namespace fusedtricks::cpu

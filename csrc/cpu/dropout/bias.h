// The bias of act_dropout: which elements a value belongs to, and the sums of their gradients.
#pragma once

#include <algorithm>
#include <vector>

#include "calls/act_dropout.h"
#include "cpu/parallel_tasks.h"

namespace fusedtricks::cpu {

constexpr int64_t kSumTask = 32768;  // elements of a task
constexpr int64_t kSumRows = 64;     // at most so many rows are summed in the compute type

// The bias, followed by `more` values from its start on: the values of so many elements follow each other, whichever is
// the first.
template <class V>
std::vector<V> unrolled_bias(const void* bias, const BiasPlaces& places, int64_t more) {
  const V* values = static_cast<const V*>(bias);
  if (!values) return {};
  std::vector<V> row(places.count + more);
  for (int64_t i = 0; i < int64_t(row.size()); ++i) row[i] = values[i % places.count];
  return row;
}

// Calls f(number, first, count) for each run of elements among [i, i + n) that share value `number` of the bias: those
// from i + first on.
template <class F>
FT_INLINE void for_runs(const BiasPlaces& places, int64_t i, int64_t n, const F& f) {
  int64_t run = i / places.inner, left = places.inner - i % places.inner;
  for (int64_t first = 0; first < n; ++run, left = places.inner) {
    const int64_t count = std::min(left, n - first);
    f(run % places.count, first, count);
    first += count;
  }
}

// How the sums over a tensor of shape [outer, count, inner] into `count` values are cut into blocks. The blocks of the
// same outer and inner range write one row of `count` partial sums.
struct SumPlan {
  int64_t outer, count, inner;     // shape of the tensor
  int64_t outers, counts, inners;  // shape of a block

  explicit SumPlan(const TailLayout& tail)
      : outer(tail.numel() / (tail.places.count * tail.places.inner)),
        count(tail.places.count),
        inner(tail.places.inner) {
    inners = std::min(inner, kSumTask);
    counts = std::min(count, std::max<int64_t>(1, kSumTask / (inner == 1 ? 8 : inner)));
    outers = inners < inner || counts < count ? (inner == 1 ? 8 : 1) : std::max<int64_t>(1, kSumTask / (count * inner));
    outers = std::min({outers, kSumRows, outer});
  }

  int64_t outer_blocks() const { return (outer + outers - 1) / outers; }
  int64_t count_blocks() const { return (count + counts - 1) / counts; }
  int64_t inner_blocks() const { return (inner + inners - 1) / inners; }
  int64_t rows() const { return outer_blocks() * inner_blocks(); }
};

struct SumBlock {
  int64_t o0, o1, c0, c1, s0, s1, row;

  SumBlock(const SumPlan& p, int64_t number) {
    const int64_t c = number % p.count_blocks(), s = number / p.count_blocks() % p.inner_blocks(),
                  o = number / p.count_blocks() / p.inner_blocks();
    o0 = o * p.outers, o1 = std::min(p.outer, o0 + p.outers);
    c0 = c * p.counts, c1 = std::min(p.count, c0 + p.counts);
    s0 = s * p.inners, s1 = std::min(p.inner, s0 + p.inners);
    row = o * p.inner_blocks() + s;
  }

  // Calls f(begin, end) for each stretch of neighbouring elements.
  template <class F>
  void for_stretches(const SumPlan& p, const F& f) const {
    const int64_t row_size = p.count * p.inner, size = (c1 - c0 - 1) * p.inner + s1 - s0;
    if (size == row_size) return f(o0 * row_size, o1 * row_size);
    for (int64_t o = o0; o < o1; ++o) {
      const int64_t begin = o * row_size + c0 * p.inner + s0;
      f(begin, begin + size);
    }
  }
};

// Adds the gradients of elements [i, i + n) to the sums of their bias values. sums[0] is that of value c0.
template <class V>
void add_to_sums(const V* g, const BiasPlaces& places, int64_t i, int64_t n, int64_t c0, V* sums) {
  if (places.inner > 1) {
    return for_runs(places, i, n, [&](int64_t number, int64_t first, int64_t count) {
      V sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = first; j < first + count; ++j) sum += g[j];
      sums[number - c0] += sum;
    });
  }
  for (int64_t first = 0, number = i % places.count; first < n; number = 0) {
    const int64_t count = std::min(places.count - number, n - first);
    V* to = sums + number - c0;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) to[j] += g[first + j];
    first += count;
  }
}

// dbias = sum of the rows of partial sums.
template <class V>
void finish_sums(const V* partial, int64_t rows, int64_t count, V* dbias) {
  constexpr int64_t width = 64;
  parallel_tasks((count + width - 1) / width, [&](int64_t task) {
    const int64_t first = task * width, n = std::min(width, count - first);
    double sum[width] = {};
    for (int64_t row = 0; row < rows; ++row) {
      const V* from = partial + row * count + first;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) sum[j] += double(from[j]);
    }
    for (int64_t j = 0; j < n; ++j) dbias[first + j] = V(sum[j]);
  });
}

}  // namespace fusedtricks::cpu

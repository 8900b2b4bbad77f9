// Sums over the elements of a channel, in lanes that stay in registers.
//
// The loops here, and those of loops.h, take their pointers as arguments and call functions of values only: if pointers
// were captured, the compiler would have to assume that every store changes them, and would not vectorise.
#pragma once

#include <cstring>
#include <utility>

#include "cpu/batch_norm/coefficients.h"
#include "cpu/simd/streams.h"

namespace fusedtricks::cpu {

// Two sums of a sweep, each in `count` lanes: of e and of a product e * f.
template <class V, int count>
struct LaneSums {
  V sum[count] = {}, product[count] = {};

  double total_sum() const { return total(sum); }
  double total_product() const { return total(product); }

 private:
  static double total(const V* lanes) {
    double t = 0;
    for (int j = 0; j < count; ++j) t += lanes[j];
    return t;
  }
};

template <class Channels>
struct ValueOf;

template <template <class> class Channels, class V>
struct ValueOf<Channels<V>> {
  using type = V;
};

template <class Channels>
using Lanes = LaneSums<typename ValueOf<Channels>::type, Channels::lanes>;

// `count` runs of n neighbouring elements, `stride` apart. Element j of a run is added to lane j % lanes. With many
// channels each element of a run belongs to another one, and n is at most the number of lanes.
struct Runs {
  int64_t count, stride, n;
};

// Prefetches the start of n elements that will be read soon: the runs of a plane start in different pages, and the
// hardware does not prefetch beyond a page.
template <class T>
FT_INLINE void prefetch(const T* x, int64_t n) {
  constexpr int64_t line = kCacheLine / int64_t(sizeof(T)), most = 2048 / int64_t(sizeof(T));
  for (int64_t i = 0; i < std::min(n, most); i += line) __builtin_prefetch(x + i);
}

// How many runs of n elements to prefetch ahead: about 4 KB.
template <class T>
FT_INLINE int64_t prefetch_distance(int64_t n) {
  return 1 + 4096 / int64_t(sizeof(T)) / n;
}

// Whether the first of an element's two terms, which is then already rounded to T, is also written; and how:
// kStreamed needs addresses and a stride of the runs that are multiples of a vector.
enum class Write { kNo, kPlain, kStreamed };

template <Write write, int n, class T>
FT_INLINE void write_terms(T* to, const OpMath<T>* terms) {
  alignas(kCacheLine) T values[n];
#pragma omp simd
  for (int j = 0; j < n; ++j) values[j] = store_rounded<T>(terms[j]);
  if constexpr (write == Write::kStreamed)
    stream_vectors<n * sizeof(T)>(to, values);
  else
    std::memcpy(to, values, sizeof(values));
}

// Adds terms(i, j), the two numbers of the element at index i in lane j, over runs of at least as many elements as
// there are lanes. The sums are declared as vectors, because gcc would leave arrays in memory; and a step takes as many
// lanes as there are T in a vector. With has_rest, the last `lanes` elements of a run whose length is no multiple of
// `lanes` are read as one more row, in which the elements that were already added are masked out.
template <bool has_rest, Write write, class T, class V, int lanes, class Terms>
FT_INLINE void add_long_runs(const T* x, const T* dy, T* out, const Runs& runs, LaneSums<V, lanes>& sums,
                             const Terms& terms) {
  using Index = typename ExpTraits<V>::Int;
  constexpr int width = std::min(kVectorBytes / int(sizeof(T)), lanes), steps = lanes / width;
  constexpr int size = std::min(kVectorBytes / int(sizeof(V)), lanes), vectors = lanes / size, per_step = width / size;
  typedef V Vector __attribute__((vector_size(size * sizeof(V))));
  Vector sum[vectors], product[vectors];
  std::memcpy(sum, sums.sum, sizeof(sum));
  std::memcpy(product, sums.product, sizeof(product));
  const int64_t full = runs.n / lanes, rows = has_rest ? (runs.n + lanes - 1) / lanes : full;
  for (int64_t run = 0; run < runs.count; ++run) {
    if (has_rest) {
      const int64_t later = (run + prefetch_distance<T>(runs.n)) * runs.stride;
      prefetch(x + later, runs.n);
      if (dy) prefetch(dy + later, runs.n);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const bool is_full = !has_rest || row < full;
      const int64_t first = run * runs.stride + (is_full ? row * lanes : runs.n - lanes);
      const Index done = is_full ? 0 : Index(rows * lanes - runs.n);
#pragma GCC unroll 8
      for (int step = 0; step < steps; ++step) {
        alignas(64) V e[width], f[width], all[width];
#pragma omp simd
        for (Index j = 0; j < width; ++j) {
          const auto term = terms(first + step * width + j, step * width + j);
          const bool counts = !has_rest || step * width + j >= done;
          if (write != Write::kNo) all[j] = term.first;
          e[j] = counts ? term.first : V(0);
          f[j] = counts ? term.second : V(0);
        }
        if constexpr (write != Write::kNo) write_terms<write, width>(out + first + step * width, all);
#pragma GCC unroll 8
        for (int v = 0; v < per_step; ++v) {
          Vector ve, vf;
          std::memcpy(&ve, e + v * size, sizeof(ve));
          std::memcpy(&vf, f + v * size, sizeof(vf));
          sum[step * per_step + v] += ve;
          product[step * per_step + v] += vf;
        }
      }
    }
  }
  std::memcpy(sums.sum, sum, sizeof(sum));
  std::memcpy(sums.product, product, sizeof(product));
}

// The same over runs of any length. x and dy are prefetched; dy may be null.
template <class Channels, Write write, class T, class Terms>
FT_INLINE void add_runs(const T* x, const T* dy, T* out, const Runs& runs, Lanes<Channels>& sums, const Terms& terms) {
  constexpr bool has_rest = Channels::tile_rows == 1;  // the runs of one channel are of any length
  if (runs.n >= Channels::lanes) return add_long_runs<has_rest, write>(x, dy, out, runs, sums, terms);
  for (int64_t run = 0; run < runs.count; ++run) {
#pragma omp simd
    for (int64_t j = 0; j < runs.n; ++j) {
      const auto term = terms(run * runs.stride + j, j);
      if (write != Write::kNo) out[run * runs.stride + j] = store_rounded<T>(term.first);
      sums.sum[j] += term.first;
      sums.product[j] += term.second;
    }
  }
}

}  // namespace fusedtricks::cpu

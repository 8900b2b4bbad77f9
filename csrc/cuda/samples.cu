// Takes whole samples out of a batch, or adds to whole samples. Every element of the result is written once, whether it
// is copied or added to.
#include "calls/samples.h"

#include "core/dtypes.h"
#include "cuda/device/flat.cuh"

namespace fusedtricks::cuda {
namespace {

// Blocks that a multiprocessor must have registers for. Without this bound the compiler aims at more and spills
// registers.
constexpr int kBlocks = 4;

// Which row is added to a sample: row j writes its number to table[index[j]]. The table is not initialised, so an entry
// that no row has written can be anything. It is recognised by being no number of a row, or that of a row which belongs
// to another sample.
struct Table {
  const int64_t *table, *index;
  int64_t rows;

  // The row for a sample, -1 if there is none.
  __device__ __forceinline__ int64_t find(int64_t sample) const {
    const int64_t row = table[sample];
    return 0 <= row && row < rows && index[row] == sample ? row : -1;
  }
};

__global__ void __launch_bounds__(kThreads)
    fill_table(const int64_t* index, int64_t rows, int64_t samples, int64_t* table) {
  const int64_t row = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (row < rows && 0 <= index[row] && index[row] < samples) table[index[row]] = row;
}

template <class T, int n>
__global__ void __launch_bounds__(kThreads)
    add(const T* base, const T* rows, T* out, int64_t samples, int64_t elements, Table table, OpMath<T> scale) {
  const int64_t count = samples * elements, numel = table.rows * elements;
  Piece<n> pieces[kFlatUnroll], added[kFlatUnroll];
  Pack<T, n> packs[kFlatUnroll], terms[kFlatUnroll];
  flat_pieces(count, pieces);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    packs[u] = load_piece<Read::kOnce>(base, Piece<n>{pieces[u].index, 0, base ? pieces[u].last : 0}, count);
  }
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    const int64_t sample = pieces[u].index / elements;
    const int64_t row = pieces[u].empty() ? -1 : table.find(sample);
    added[u] = {row * elements + pieces[u].index - sample * elements, 0, row < 0 ? 0 : n};
  }
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) terms[u] = load_piece<Read::kOnce>(rows, added[u], numel);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    if (!added[u].empty()) {
      OpMath<T> sum[n], term[n];
      unpack(packs[u], sum);
      unpack(terms[u], term);
#pragma unroll
      for (int e = 0; e < n; ++e) sum[e] = base ? sum[e] + scale * term[e] : scale * term[e];
      packs[u] = rounded_pack<T>(sum);
    }
    store_piece(out, pieces[u], packs[u]);
  }
}

// Gives NaN where an index names no sample. To check the index here costs nothing; on the host it would mean waiting
// for the GPU.
template <class T, int n>
__global__ void __launch_bounds__(kThreads, kBlocks)
    select(const T* x, T* out, int64_t samples, int64_t elements, int64_t rows, const int64_t* index, OpMath<T> scale) {
  const int64_t count = rows * elements, numel = samples * elements;
  Piece<n> pieces[kFlatUnroll], taken[kFlatUnroll];
  Pack<T, n> packs[kFlatUnroll];
  flat_pieces(count, pieces);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    const int64_t row = pieces[u].index / elements, named = pieces[u].empty() ? -1 : index[row];
    const int64_t sample = 0 <= named && named < samples ? named : -1;
    taken[u] = {sample * elements + pieces[u].index - row * elements, 0, sample < 0 ? 0 : n};
  }
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) packs[u] = load_piece<Read::kOnce>(x, taken[u], numel);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    OpMath<T> values[n];
    unpack(packs[u], values);
#pragma unroll
    for (int e = 0; e < n; ++e) values[e] = taken[u].empty() ? canonical<OpMath<T>>(NAN) : scale * values[e];
    store_piece(out, pieces[u], rounded_pack<T>(values));
  }
}

// Calls f(Type<T>, n) with the largest pack of n elements that divides a sample; n is 1 if the tensors are not aligned.
template <int n, class T, class F>
void with_fitting_pack(bool aligned, int64_t elements, const F& f) {
  if constexpr (n > 1) {
    if (!aligned || elements % n) return with_fitting_pack<n / 2, T>(aligned, elements, f);
  }
  f(Type<T>{}, std::integral_constant<int, n>());
}

template <class F>
void with_pack_of_sample(const SamplesCall& call, std::initializer_list<const void*> tensors, const F& f) {
  const bool aligned = are_pack_aligned(tensors);
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    with_fitting_pack<kPack<T>, T>(aligned, call.elements, f);
  });
}

void add_samples(const SamplesCall& call, const void* base, const void* rows, int64_t* table, void* out) {
  const int64_t count = call.samples * call.elements;
  if (!count) return;
  if (call.rows) {
    launch(fill_table, ceil_div(call.rows, kThreads), kThreads, 0, call.index, call.rows, call.samples, table);
  }
  with_pack_of_sample(call, {base, rows, out}, [&](auto type, auto pack) {
    using T = typename decltype(type)::type;
    constexpr int n = decltype(pack)::value;
    launch(add<T, n>, flat_blocks(count, n), kThreads, 0, static_cast<const T*>(base), static_cast<const T*>(rows),
           static_cast<T*>(out), call.samples, call.elements, Table{table, call.index, call.rows},
           OpMath<T>(call.scale));
  });
}

void select_samples(const SamplesCall& call, const void* x, void* out) {
  const int64_t count = call.rows * call.elements;
  if (!count) return;
  with_pack_of_sample(call, {x, out}, [&](auto type, auto pack) {
    using T = typename decltype(type)::type;
    constexpr int n = decltype(pack)::value;
    launch(select<T, n>, flat_blocks(count, n), kThreads, 0, static_cast<const T*>(x), static_cast<T*>(out),
           call.samples, call.elements, call.rows, call.index, OpMath<T>(call.scale));
  });
}

const Provided provided[] = {
    {kernels::add_samples, add_samples},
    {kernels::select_samples, select_samples},
};

}  // namespace
}  // namespace fusedtricks::cuda

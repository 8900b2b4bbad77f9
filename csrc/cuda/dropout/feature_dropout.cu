// Dropout of whole groups of elements: channels, samples or batches. The elements of a pack share a block of words
// where they can.
#include "calls/feature_dropout.h"

#include "core/dtypes.h"
#include "cuda/device/flat.cuh"
#include "cuda/dropout/mask.cuh"

namespace fusedtricks::cuda {
namespace {

// Whether each of n neighbouring elements is kept, with three divisions for all of them.
template <int n>
__device__ __forceinline__ void draw_groups(const Mask& mask, const MaskGroups& groups, int64_t index,
                                            bool (&keep)[n]) {
  int64_t quotient = index / groups.outer, rest = index % groups.outer, place = index % groups.inner;
  PhiloxBlock block{};
  uint64_t counter = ~uint64_t(0);
#pragma unroll
  for (int e = 0; e < n; ++e) {
    const uint64_t word = uint64_t(quotient * groups.inner + place);
    if (word / 4 != counter) {
      counter = word / 4;
      block = philox_block(mask.seed, mask.offset, counter);
    }
    keep[e] = mask.keeps(word_at(block, int(word % 4)));
    if (++place == groups.inner) place = 0;
    if (++rest == groups.outer) rest = 0, ++quotient;
  }
}

template <class T, int n>
__global__ void __launch_bounds__(kThreads) drop_groups(const T* x, const T* residual, T* y, int64_t count,
                                                        MaskGroups groups, MaskSource source, Drop<OpMath<T>> drop) {
  const Mask mask = read_mask(source);
  if (count == 0) return;  // then the groups may be empty too, and nothing could be divided by their sizes
  Piece<n> pieces[kFlatUnroll];
  Pack<T, n> packs[kFlatUnroll], residuals[kFlatUnroll];
  flat_pieces(count, pieces);
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    packs[u] = load_piece<Read::kOnce>(x, pieces[u], count);
    if (residual) residuals[u] = load_piece<Read::kOnce>(residual, pieces[u], count);
  }
#pragma unroll
  for (int u = 0; u < kFlatUnroll; ++u) {
    bool keep[n];
    draw_groups(mask, groups, pieces[u].index, keep);
    OpMath<T> values[n];
    unpack(packs[u], values);
#pragma unroll
    for (int e = 0; e < n; ++e) {
      values[e] = drop(values[e], keep[e]);
      if (residual) values[e] += load(residuals[u].value[e]);
    }
    store_piece(y, pieces[u], rounded_pack<T>(values));
  }
}

void feature_dropout(const FeatureDropoutCall& call) {
  if (!call.numel && !call.mask.record) return;  // an empty tensor's mask is recorded all the same
  with_flat_pack(call.dtype, are_pack_aligned({call.x, call.residual, call.y}), [&](auto type, auto pack) {
    using T = typename decltype(type)::type;
    constexpr int n = decltype(pack)::value;
    launch(drop_groups<T, n>, flat_blocks(call.numel, n), kThreads, 0, static_cast<const T*>(call.x),
           static_cast<const T*>(call.residual), static_cast<T*>(call.y), call.numel, call.groups, call.mask,
           Drop<OpMath<T>>(call.mask.rate));
  });
}

const Provided provided(kernels::feature_dropout, feature_dropout);

}  // namespace
}  // namespace fusedtricks::cuda

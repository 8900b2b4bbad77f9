// Dropout of whole channels, samples or batches: elements of a pack share a block of words where they can.
#include "calls/feature_dropout.h"

#include "core/dtypes.h"
#include "cuda/device/flat.cuh"
#include "cuda/dropout/mask.cuh"

namespace fusedtricks::cuda {
namespace {

// The word of each of n neighbouring elements, without a division for each.
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
  const Mask mask = source.get();
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

void drop(const FeatureDropoutCall& call, const MaskSource& source) {
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto launch_by = [&](auto pack) {
      constexpr int n = decltype(pack)::value;
      launch(drop_groups<T, n>, flat_blocks(call.numel, n), kThreads, 0, static_cast<const T*>(call.x),
             static_cast<const T*>(call.residual), static_cast<T*>(call.y), call.numel, call.groups, source,
             Drop<OpMath<T>>(call.rate));
    };
    if (is_pack_aligned(call.x) && is_pack_aligned(call.residual) && is_pack_aligned(call.y))
      launch_by(std::integral_constant<int, kPack<T>>());
    else
      launch_by(std::integral_constant<int, 1>());
  });
}

}  // namespace
}  // namespace fusedtricks::cuda

namespace fusedtricks::backend {

void feature_dropout_forward(const FeatureDropoutCall& call, std::optional<int64_t> seed, int64_t* rng_state) {
  cuda::drop(call, cuda::MaskSource::drawn(call.rate, seed, rng_state));
}

void feature_dropout_backward(const FeatureDropoutCall& call, const int64_t* rng_state) {
  if (call.numel) cuda::drop(call, cuda::MaskSource::recorded_in(call.rate, rng_state));
}

}  // namespace fusedtricks::backend

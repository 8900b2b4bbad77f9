// Dropout: y = x * mask * scale in one pass, the mask recomputed from (seed, offset, logical index) wherever it is
// needed. The backward is the same pass over dy.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <mutex>

#include "../checks.h"
#include "../layout.h"
#include "dispatch.h"
#include "memory.h"
#include "philox_lanes.h"

namespace fusedtricks::cpu {
namespace {

using at::Tensor;

struct Mask {
  uint64_t seed, offset;
  DropRate rate;
};

// x * scale where kept, +0 where not. By bits: a multiplication would let a dropped NaN through, and a conditional
// expression would be a branch that is mispredicted at random.
template <class V>
FT_INLINE V masked(V x, uint32_t word, uint32_t threshold) {
  using Bits = typename ExpTraits<V>::Int;
  return bit_cast<V>(Bits(bit_cast<Bits>(x) & -Bits(word >= threshold)));
}

template <class T>
void drop_span(const T* x, T* y, int64_t n, const uint32_t* word, uint32_t threshold, Compute<T> scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<T>(masked(load(x[i]) * scale, word[i], threshold));
}

// Contiguous: element i takes word i. The words of a step need no memory; meanwhile the elements of later steps can
// come and those of earlier ones can go.
template <class T>
void drop_contiguous(const T* x, T* y, int64_t n, const Mask& mask) {
  constexpr int64_t kTask = 16384, kStep = 4 * kCountersAtOnce, kAhead = 4096 / sizeof(T);
  static_assert(kTask % kStep == 0 && kStep <= kTile);
  const uint32_t threshold = uint32_t(mask.rate.threshold);
  const auto scale = Compute<T>(mask.rate.scale);
  const bool stream = x != y && worth_streaming(n, sizeof(T));
  Words lane{};
  for (int j = 0; j < kLanesOfVector; ++j) lane[j] = j;

  parallel_tasks((n + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kTask);
    for (int64_t i = task * kTask; i < end; i += kStep) {
      alignas(kCacheLine) uint32_t word[kStep];
      const uint64_t counter = uint64_t(i) / 4;
      for (int64_t j = 0; j < kStep; j += kCacheLine / int64_t(sizeof(T))) __builtin_prefetch(x + i + kAhead + j);
      PhiloxLanes([&](int v) { return lane + (counter + v * kLanesOfVector); }, mask.seed, mask.offset)
          .store_interleaved(word);
      emit(y + i, std::min(kStep, end - i), stream,
           [&](T* to, int64_t, int64_t count) { drop_span(x + i, to, count, word, threshold, scale); });
    }
    if (stream) stream_fence();
  });
}

// The words of a tile of kChannels channels by kPositions positions of rows: word[position * kChannels + channel].
constexpr int kChannels = 64, kPositions = 64;

struct RowWords {
  // One block more a channel than kPositions / 4: a channel's first position may lie inside a block.
  alignas(kCacheLine) uint32_t word[(kPositions / 4 + 1) * 4 * kChannels];
  int32_t start[kChannels];  // where channel c's first word is
  bool aligned = true;       // every channel starts a block

  // Channels of the tile: `count`, the first of which has logical index `first` at the first position.
  void fill(int64_t first, int count, int64_t channel_stride, int positions, const Mask& mask) {
    alignas(kCacheLine) uint64_t counter[kChannels] = {};
    aligned = true;
    for (int c = 0; c < count; ++c) {
      const uint64_t index = uint64_t(first + c * channel_stride);
      counter[c] = index / 4;
      start[c] = int32_t(index % 4) * kChannels + c;
      aligned &= index % 4 == 0;
    }
    // A vector holds one block of some channels; vectors are numbered through all blocks, and go in packs.
    const int vectors = (count + kLanesOfVector - 1) / kLanesOfVector, total = ((positions + 2) / 4 + 1) * vectors;
    for (int first_vector = 0; first_vector < total; first_vector += kVectors) {
      const auto counters = [&](int v) {
        const int vector = first_vector + v;
        Words of_block_0;
        std::memcpy(&of_block_0, counter + vector % vectors * kLanesOfVector, sizeof(of_block_0));
        return of_block_0 + uint64_t(vector / vectors);
      };
      const PhiloxLanes lanes(counters, mask.seed, mask.offset);
      for (int v = 0; v < std::min(kVectors, total - first_vector); ++v) {
        const int vector = first_vector + v;
        lanes.store_planar(v, word + vector / vectors * 4 * kChannels + vector % vectors * kLanesOfVector, kChannels);
      }
    }
  }

  // The words of one position, gathered into `row` where channels are out of step.
  const uint32_t* of(int position, int count, uint32_t* row) const {
    const uint32_t* at = word + position * kChannels;
    if (aligned) return at;
#pragma omp simd
    for (int c = 0; c < count; ++c) row[c] = at[start[c]];
    return row;
  }
};

template <class T>
void drop_rows(const T* x, T* y, const Layout& layout, const Mask& mask) {
  const int64_t C = layout.channels, S = layout.positions, blocks = (S + kPositions - 1) / kPositions;
  const uint32_t threshold = uint32_t(mask.rate.threshold);
  const auto scale = Compute<T>(mask.rate.scale);
  parallel_tasks(layout.samples * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, s0 = task % blocks * kPositions;
    const int positions = int(std::min<int64_t>(kPositions, S - s0));
    RowWords words;
    uint32_t row[kChannels];
    for (int64_t c = 0; c < C; c += kChannels) {
      const int count = int(std::min<int64_t>(kChannels, C - c));
      words.fill((n * C + c) * S + s0, count, S, positions, mask);
      for (int s = 0; s < positions; ++s) {
        const int64_t i = (n * S + s0 + s) * C + c;
        drop_span(x + i, y + i, count, words.of(s, count, row), threshold, scale);
      }
    }
  });
}

// y = dropout of x, both dense and of one layout; they may be the same memory.
void drop(const Tensor& x, const Tensor& y, const Mask& mask) {
  if (!x.numel()) return;
  if (mask.rate.drops_all()) {
    y.zero_();
    return;
  }
  visit_dtype(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const T* in = static_cast<const T*>(x.const_data_ptr());
    T* out = static_cast<T*>(y.data_ptr());
    if (y.is_contiguous())
      drop_contiguous(in, out, y.numel(), mask);
    else
      drop_rows(in, out, layout_of(y), mask);
  });
}

// The seed of this call, and the state that its backward needs.
Tensor draw(std::optional<int64_t> seed) {
  if (!seed) {
    auto* generator =
        at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
    const std::lock_guard<std::mutex> lock(generator->mutex_);
    seed = int64_t(generator->random64());
  }
  const Tensor state = at::empty({2}, at::kLong);
  int64_t* data = state.data_ptr<int64_t>();
  data[0] = *seed;
  data[1] = 0;
  return state;
}

Mask mask_of(const Tensor& rng_state, double p, bool scale_kept) {
  const Tensor dense = rng_state.contiguous();
  const int64_t* data = dense.const_data_ptr<int64_t>();
  return {uint64_t(data[0]), uint64_t(data[1]), DropRate::make(p, scale_kept)};
}

std::tuple<Tensor, Tensor> dropout(const Tensor& input, double p, bool scale_kept, std::optional<int64_t> seed) {
  check_floating(input, "dropout", "input");
  check_probability(p);
  const Tensor y = empty_in_kernel_layout(input), rng_state = draw(seed);
  drop(laid_out_like(input, y), y, mask_of(rng_state, p, scale_kept));
  return {y, rng_state};
}

Tensor dropout_inplace(const Tensor& input, double p, bool scale_kept, std::optional<int64_t> seed) {
  check_floating(input, "dropout", "input");
  check_probability(p);
  at::assert_no_internal_overlap(input);
  const Tensor rng_state = draw(seed);
  const Mask mask = mask_of(rng_state, p, scale_kept);
  if (is_kernel_layout(input)) {
    drop(input, input, mask);
  } else {
    const Tensor y = input.contiguous();
    drop(y, y, mask);
    input.copy_(y);
  }
  return rng_state;
}

Tensor dropout_backward(const Tensor& grad_output, const Tensor& rng_state, double p, bool scale_kept) {
  check_floating(grad_output, "dropout_backward", "grad_output");
  check_probability(p);
  check_rng_state(rng_state, grad_output);
  const Tensor dx = empty_in_kernel_layout(grad_output);
  drop(laid_out_like(grad_output, dx), dx, mask_of(rng_state, p, scale_kept));
  return dx;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, CPU, m) {
  m.impl("dropout", dropout);
  m.impl("dropout_", dropout_inplace);
  m.impl("dropout_backward", dropout_backward);
}

}  // namespace fusedtricks::cpu

// Dropout: y = x * mask * scale in one pass, the mask recomputed from (seed, offset, logical index) wherever it is
// needed. The backward is the same pass over dy.
#include "../dropout.h"

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "../element.h"
#include "dispatch.h"
#include "memory.h"
#include "philox_lanes.h"

namespace fusedtricks::cpu {
namespace {

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

uint64_t draw_seed() {
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  return generator->random64();
}

}  // namespace
}  // namespace fusedtricks::cpu

void fusedtricks::backend::dropout_forward(const DropoutCall& call, std::optional<int64_t> seed, int64_t* rng_state) {
  rng_state[0] = seed ? *seed : int64_t(cpu::draw_seed());
  rng_state[1] = 0;
  dropout_backward(call, rng_state);
}

void fusedtricks::backend::dropout_backward(const DropoutCall& call, const int64_t* rng_state) {
  const cpu::Mask mask{uint64_t(rng_state[0]), uint64_t(rng_state[1]), call.rate};
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* x = static_cast<const T*>(call.x);
    T* y = static_cast<T*>(call.y);
    if (call.rate.drops_all())
      std::fill_n(y, call.numel(), T(0));
    else if (call.in_logical_order)
      cpu::drop_contiguous(x, y, call.numel(), mask);
    else
      cpu::drop_rows(x, y, call.layout, mask);
  });
}

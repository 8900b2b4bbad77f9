// Masks of dropout: words of the Philox stream where the loops need them, recomputed from (seed, offset, logical
// index).
#pragma once

#include "core/mask_source.h"
#include "core/scalar.h"
#include "cpu/simd/philox_lanes.h"
#include "cpu/simd/streams.h"

namespace fusedtricks::cpu {

typedef int64_t SignedWords __attribute__((vector_size(FT_VECTOR_BYTES)));

struct Mask {
  uint64_t seed, offset;
  DropRate rate;

  // Records a mask that was just drawn: once a call.
  explicit Mask(const MaskSource& source) : seed(source.seed()), offset(source.offset()), rate(source.rate) {
    source.write_record();
  }
};

// x where kept, +0 where not. By bits: a multiplication would let a dropped NaN through, and a conditional expression
// would be a branch that is mispredicted at random.
template <class V>
FT_INLINE V masked(V x, uint32_t word, uint32_t threshold) {
  using Bits = typename ExpTraits<V>::Int;
  return bit_cast<V>(Bits(bit_cast<Bits>(x) & -Bits(word >= threshold)));
}

// x * scale where kept; in place where y is x.
template <class From, class To>
void drop_span(const From* x, To* y, int64_t n, const uint32_t* word, uint32_t threshold, OpMath<To> scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<To>(masked(load(x[i]) * scale, word[i], threshold));
}

// The same for any rate: dropped values become its `fill`.
template <class T>
void drop_span(const T* x, T* y, int64_t n, const uint32_t* word, const DropRate& rate) {
  using V = OpMath<T>;
  using Bits = typename ExpTraits<V>::Int;
  const uint32_t threshold = uint32_t(rate.threshold);
  const V scale = V(rate.scale), shift = V(rate.shift), fill = V(rate.fill);
  if (rate.is_linear()) return drop_span(x, y, n, word, threshold, scale);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Bits dropped = bit_cast<Bits>(fill) & -Bits(word[i] < threshold);
    y[i] =
        store<T>(bit_cast<V>(Bits(bit_cast<Bits>(masked(load(x[i]) * scale + shift, word[i], threshold)) | dropped)));
  }
}

// The words of elements that follow each other in logical order.
struct OrderedWords {
  static constexpr int64_t count = 4 * kCountersAtOnce;

  alignas(kCacheLine) uint32_t word[count];

  // Those from the element of that index on: the first `count - index % 4` of what is returned.
  FT_INLINE const uint32_t* fill(const Mask& mask, uint64_t index) {
    Words lane{};
    for (int j = 0; j < kLanesOfVector; ++j) lane[j] = j;
    const uint64_t counter = index / 4;
    PhiloxLanes([&](int v) { return lane + (counter + v * kLanesOfVector); }, mask.seed, mask.offset)
        .store_interleaved(word);
    return word + index % 4;
  }
};

// Dropout of spans in logical order: the words that one leaves over are there for the next, where that follows it.
class OrderedDropper {
 public:
  // ahead: how many elements lie between what is read and written and what is to be asked for by then; 0 asks for none.
  OrderedDropper(const Mask& mask, int64_t ahead) : mask_(mask), ahead_(ahead) {}

  // y = x * scale where kept, for n elements from that logical index on; in place where y is x.
  template <class From, class To>
  void drop(const From* x, To* y, int64_t n, int64_t index, OpMath<To> scale) {
    if (mask_.rate.drops_all()) return void(std::fill_n(y, n, To(0)));
    for (int64_t i = 0, count; i < n; i += count) {
      const int64_t at = index + i;
      if (at < first_ || at >= first_ + there_) {
        if (ahead_) prefetch(x + i + ahead_, y + i + ahead_);
        draw(at);
      }
      count = std::min(n - i, first_ + there_ - at);
      drop_span(x + i, y + i, count, words_.word + (at - first_), uint32_t(mask_.rate.threshold), scale);
    }
  }

 private:
  const Mask mask_;
  const int64_t ahead_;
  int64_t first_ = 0, there_ = 0;
  OrderedWords words_;

  // While words are drawn nothing else is asked for.
  template <class From, class To>
  static void prefetch(const From* x, To* y) {
    for (int64_t i = 0; i < OrderedWords::count; i += kCacheLine / int64_t(sizeof(From))) __builtin_prefetch(x + i);
    for (int64_t i = 0; i < OrderedWords::count; i += kCacheLine / int64_t(sizeof(To))) __builtin_prefetch(y + i, 1);
  }

  void draw(int64_t index) {
    first_ = index / 4 * 4;
    there_ = OrderedWords::count;
    words_.fill(mask_, uint64_t(first_));
  }
};

// Whether elements are kept, a bit for each of up to 32 positions of some channels of rows.
struct KeptBits {
  static constexpr int positions = 32, channels = 1024;

  alignas(kCacheLine) uint32_t bits[channels];

  // Channels: `count`, the first of which has logical index `first` at the first position.
  void fill(int64_t first, int count, int64_t channel_stride, int position_count, const Mask& mask) {
    if (mask.rate.drops_all()) return void(std::fill_n(bits, count, 0));
    const Words low = Words{} + 0xffffffffu;
    const SignedWords threshold = SignedWords{} + int64_t(mask.rate.threshold);
    for (int c = 0; c < count; c += kCountersAtOnce) {
      Words index[kVectors] = {}, kept[kVectors] = {};
      for (int v = 0; v < kVectors; ++v) {
        for (int j = 0; j < kLanesOfVector; ++j) {
          index[v][j] = uint64_t(first + (c + v * kLanesOfVector + j) * channel_stride);
        }
      }
      // A channel's first position may lie inside a block.
      const bool aligned = first % 4 == 0 && channel_stride % 4 == 0;
      const int blocks = (position_count + (aligned ? 0 : 3) + 3) / 4;
      for (int block = 0; block < blocks; ++block) {
        const PhiloxLanes lanes([&](int v) { return (index[v] >> 2) + uint64_t(block); }, mask.seed, mask.offset);
        for (int v = 0; v < kVectors; ++v) {
          for (int w = 0; w < 4; ++w) {
            const Words is_kept = Words(SignedWords(lanes.word[v][w] & low) >= threshold);
            kept[v] |= is_kept & (Words{} + (uint64_t(1) << (4 * block + w)));
          }
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        const Words from_first = kept[v] >> (index[v] & 3);
        for (int j = 0; j < kLanesOfVector && c + v * kLanesOfVector + j < count; ++j) {
          bits[c + v * kLanesOfVector + j] = uint32_t(from_first[j]);
        }
      }
    }
  }

  // y = x * scale where kept at one position, for the channels that the n bits belong to; in place where y is x.
  template <class From, class To>
  static void drop(const From* x, To* y, int64_t n, const uint32_t* bits, int position, OpMath<To> scale) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = store<To>(masked(load(x[i]) * scale, bits[i] >> position & 1, 1));
  }
};

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

}  // namespace fusedtricks::cpu

// Dropout masks on the CPU: the random words are computed again from (seed, offset, logical index) wherever a loop
// needs them. This file serves elements in logical order; row_mask.h those of channels_last tensors.
#pragma once

#include "core/mask_source.h"
#include "core/scalar.h"
#include "cpu/simd/philox_lanes.h"
#include "cpu/simd/streams.h"

namespace fusedtricks::cpu {

struct Mask {
  uint64_t seed, offset;
  DropRate rate;

  // Make one per call: this also records the mask of a forward.
  explicit Mask(const MaskSource& source) : seed(source.seed()), offset(source.offset()), rate(source.rate) {
    source.write_record();
  }
};

// x where it is kept, otherwise +0. On the bits: a multiplication by 0 would keep a dropped NaN, and a conditional
// expression would become a branch that is mispredicted at random.
template <class V>
FT_INLINE V masked(V x, uint32_t word, uint32_t threshold) {
  using Bits = typename ExpTraits<V>::Int;
  return bit_cast<V>(Bits(bit_cast<Bits>(x) & -Bits(word >= threshold)));
}

// y = x * scale where kept, otherwise 0. y may be x.
template <class From, class To>
void drop_span(const From* x, To* y, int64_t n, const uint32_t* word, uint32_t threshold, OpMath<To> scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<To>(masked(load(x[i]) * scale, word[i], threshold));
}

// y = x * scale + shift where kept, otherwise `fill`. y may be x.
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

  // The words of elements index, index + 1, …: valid are the first `count - index % 4` of what is returned.
  const uint32_t* fill(const Mask& mask, uint64_t index);
};

// Dropout of spans in logical order. Words that one span leaves over serve the next, if it follows.
class OrderedDropper {
 public:
  // While words are drawn, the elements of x and y that lie `ahead` elements further on are prefetched; 0: none are.
  OrderedDropper(const Mask& mask, int64_t ahead) : mask_(mask), ahead_(ahead) {}

  // y = x * scale where kept, otherwise 0, for n elements from logical index `index` on. y may be x.
  template <class From, class To>
  void drop(const From* x, To* y, int64_t n, int64_t index, OpMath<To> scale) {
    if (mask_.rate.drops_all()) return void(std::fill_n(y, n, To(0)));
    for (int64_t i = 0, count; i < n; i += count) {
      const int64_t at = index + i;
      if (at < first_ || at >= first_ + available_) {
        if (ahead_) prefetch(x + i + ahead_, y + i + ahead_);
        draw(at);
      }
      count = std::min(n - i, first_ + available_ - at);
      drop_span(x + i, y + i, count, words_.word + (at - first_), uint32_t(mask_.rate.threshold), scale);
    }
  }

 private:
  const Mask mask_;
  const int64_t ahead_;
  int64_t first_ = 0, available_ = 0;  // words of the elements from first_ on
  OrderedWords words_;

  template <class From, class To>
  static void prefetch(const From* x, To* y) {
    for (int64_t i = 0; i < OrderedWords::count; i += kCacheLine / int64_t(sizeof(From))) __builtin_prefetch(x + i);
    for (int64_t i = 0; i < OrderedWords::count; i += kCacheLine / int64_t(sizeof(To))) __builtin_prefetch(y + i, 1);
  }

  void draw(int64_t index) {
    first_ = index / 4 * 4;
    available_ = OrderedWords::count;
    words_.fill(mask_, uint64_t(first_));
  }
};

}  // namespace fusedtricks::cpu

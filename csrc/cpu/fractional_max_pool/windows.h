// Fractional max-pooling: the windows of some neighbouring planes, and spans of their results.
#pragma once

#include <vector>

#include "calls/fractional_max_pool.h"
#include "core/dtypes.h"
#include "cpu/simd/streams.h"

namespace fusedtricks::cpu {

// Elements of a task: part of a plane or sample, or some small ones.
constexpr int64_t kPoolTask = 16384;

// Where the windows of up to `lanes` planes begin, the planes innermost.
class WindowTable {
 public:
  WindowTable(const PoolCall& call, int lanes)
      : shape_(call.shape), samples_(call.samples), random_(call.random), lanes_(lanes) {
    const int64_t* output = shape_.output;
    starts_.resize((output[kDepth] + output[kHeight] + output[kWidth]) * lanes);
  }

  void set(int64_t first_plane, int count) {
    if (!samples_.given) return fill<double>(first_plane, count, [&](int64_t index) { return drawn(uint64_t(index)); });
    visit_dtype(samples_.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const T* given = static_cast<const T*>(samples_.given);
      fill<T>(first_plane, count, [&](int64_t index) { return load(given[index]); });
    });
  }

  // Of window `number` of a dimension, by lane.
  const int32_t* starts(Dimension dimension, int64_t number) const {
    const int64_t before = dimension == kDepth    ? 0
                           : dimension == kHeight ? shape_.output[kDepth]
                                                  : shape_.output[kDepth] + shape_.output[kHeight];
    return starts_.data() + (before + number) * lanes_;
  }

  // The first position of row `row` of windows (of depth and height), without its width.
  int64_t position(int64_t row, int lane) const {
    const int64_t height = shape_.output[kHeight];
    const int64_t d = starts(kDepth, row / height)[lane], h = starts(kHeight, row % height)[lane];
    return (d * shape_.input[kHeight] + h) * shape_.input[kWidth];
  }

 private:
  double drawn(uint64_t index) {
    if (!block_ || index / 4 != counter_) {
      counter_ = index / 4;
      block_ = philox_block(random_.seed(), random_.offset(), counter_);
    }
    return pool_sample(block_->word[index % 4]);
  }

  template <class T, class Sample>
  void fill(int64_t first_plane, int count, const Sample& sample) {
    int32_t* to = starts_.data();
    for (int d = 0; d < kDimensions; ++d) {
      const bool pooled = d > kDepth || shape_.rank == 3;
      for (int lane = 0; lane < count; ++lane) {
        const int64_t index = (first_plane + lane) * shape_.rank + (pooled ? shape_.sample_of(d) : 0);
        const WindowStarts<T> start(sample(index), shape_.input[d], shape_.output[d], shape_.kernel[d]);
        for (int64_t i = 0; i < shape_.output[d]; ++i) to[i * lanes_ + lane] = int32_t(start(i));
      }
      to += shape_.output[d] * lanes_;
    }
  }

  PoolShape shape_;
  PoolSamples samples_;
  MaskSource random_;
  int lanes_;
  std::vector<int32_t> starts_;
  uint64_t counter_ = 0;
  std::optional<PhiloxBlock> block_;  // the last one that was needed: neighbours share it
};

// From a window's first position to its last.
inline int64_t window_extent(const PoolShape& shape) {
  return ((shape.kernel[kDepth] - 1) * shape.input[kHeight] + shape.kernel[kHeight] - 1) * shape.input[kWidth] +
         shape.kernel[kWidth] - 1;
}

// How far each place of a window is from the window's first position.
inline std::vector<int64_t> place_offsets(const PoolShape& shape) {
  std::vector<int64_t> offsets;
  offsets.reserve(shape.places());
  for (int64_t d = 0; d < shape.kernel[kDepth]; ++d) {
    for (int64_t h = 0; h < shape.kernel[kHeight]; ++h) {
      for (int64_t w = 0; w < shape.kernel[kWidth]; ++w) {
        offsets.push_back((d * shape.input[kHeight] + h) * shape.input[kWidth] + w);
      }
    }
  }
  return offsets;
}

template <class To, class From>
void convert_span(const From* from, To* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = To(from[i]);
}

// n places from element `first` of a tensor of 1, 2 or 4 bytes each.
inline void load_places(const void* places, int bytes, int64_t first, int32_t* to, int64_t n) {
  if (bytes == 1) return convert_span(static_cast<const uint8_t*>(places) + first, to, n);
  if (bytes == 2) return convert_span(static_cast<const uint16_t*>(places) + first, to, n);
  convert_span(static_cast<const int32_t*>(places) + first, to, n);
}

inline void store_places(const int32_t* from, void* places, int bytes, int64_t first, int64_t n) {
  if (bytes == 1) return convert_span(from, static_cast<uint8_t*>(places) + first, n);
  if (bytes == 2) return convert_span(from, static_cast<uint16_t*>(places) + first, n);
  convert_span(from, static_cast<int32_t*>(places) + first, n);
}

// The loops of the activations that this pooling takes, which are monotone and so keep their result.

// y = act(z).
template <class T>
using ResultSpan = void (*)(const OpMath<T>* z, T* y, int64_t n, const Activation&);

template <class T, class Act>
void apply_activation(const OpMath<T>* z, T* y, int64_t n, const Activation& activation) {
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<T>(act.forward(z[i]));
}

template <class T>
ResultSpan<T> result_span(const Activation& activation) {
  ResultSpan<T> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) {
    if constexpr (decltype(act)::may_keep_result) span = apply_activation<T, decltype(act)>;
  });
  return span;
}

// dz = dy * act', read off the result y. The identity does not read y.
template <class T>
using GradientSpan = void (*)(const T* dy, const T* y, OpMath<T>* dz, int64_t n, const Activation&);

template <class T, class Act>
void apply_derivative(const T* dy, const T* y, OpMath<T>* dz, int64_t n, const Activation& activation) {
  const Act act(activation.parameters);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dz[i] = load(dy[i]) * act.grad(load(y[i]), load(y[i]));
}

template <class T>
void widen(const T* dy, const T*, OpMath<T>* dz, int64_t n, const Activation&) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dz[i] = load(dy[i]);
}

template <class T>
GradientSpan<T> gradient_span(const Activation& activation) {
  GradientSpan<T> span = widen<T>;
  if (activation.is_identity()) return span;
  activation.visit<OpMath<T>>([&](auto act) {
    if constexpr (decltype(act)::may_keep_result) span = apply_derivative<T, decltype(act)>;
  });
  return span;
}

}  // namespace fusedtricks::cpu

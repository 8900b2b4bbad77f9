// The windows of fractional max-pooling.
#pragma once

#include <optional>
#include <vector>

#include "calls/fractional_max_pool.h"
#include "core/dtypes.h"
#include "cpu/simd/streams.h"

namespace fusedtricks::cpu {

// Elements of a task, which is part of a plane or sample, or several small ones.
constexpr int64_t kPoolTask = 16384;

// Where the windows of up to `lanes` planes start. A plane is a lane, and lanes are innermost.
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

  // Where window `number` of a dimension starts, for each lane.
  const int32_t* starts(Dimension dimension, int64_t number) const {
    const int64_t before = dimension == kDepth    ? 0
                           : dimension == kHeight ? shape_.output[kDepth]
                                                  : shape_.output[kDepth] + shape_.output[kHeight];
    return starts_.data() + (before + number) * lanes_;
  }

  // The position where row `row` of windows starts, counting rows through depth and height; without the window's start
  // in the width.
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
  std::optional<PhiloxBlock> block_;  // number counter_: neighbouring planes share it
};

// Distance from a window's first position to its last.
inline int64_t window_extent(const PoolShape& shape) {
  return ((shape.kernel[kDepth] - 1) * shape.input[kHeight] + shape.kernel[kHeight] - 1) * shape.input[kWidth] +
         shape.kernel[kWidth] - 1;
}

// Distance of each place of a window from the window's first position.
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

// Reads n places from a tensor whose elements have 1, 2 or 4 bytes, starting at element `first`.
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

}  // namespace fusedtricks::cpu

// Dropout of whole channels, samples or batches. Contiguous groups that are dropped are not read.
#include "calls/feature_dropout.h"

#include "cpu/dropout/mask.h"
#include "cpu/parallel_tasks.h"

namespace fusedtricks::cpu {
namespace {

constexpr int64_t kTask = 16384;     // elements
constexpr int64_t kLongGroup = 256;  // for longer groups it costs nothing to compute a block of words for each

// The words of groups that are asked for in ascending order. few: compute one block at a time, otherwise many ahead.
class GroupWords {
 public:
  GroupWords(const Mask& mask, bool few) : mask_(mask), few_(few) {}

  uint32_t get(uint64_t group) {
    if (few_) return philox_block(mask_.seed, mask_.offset, group / 4).word[group % 4];
    if (!word_ || group >= end_) {
      word_ = words_.fill(mask_, group);
      first_ = group;
      end_ = group + OrderedWords::count - group % 4;
    }
    return word_[group - first_];
  }

 private:
  const Mask& mask_;
  bool few_;
  OrderedWords words_;
  const uint32_t* word_ = nullptr;
  uint64_t first_ = 0, end_ = 0;
};

// y = x * scale + shift [+ residual], for kept elements. A shift of 0 is not added, so that zeros keep their sign.
template <class T>
void keep_span(const T* x, const T* residual, T* y, int64_t n, const DropRate& rate) {
  using V = OpMath<T>;
  const V scale = V(rate.scale), shift = V(rate.shift);
  if (residual) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = store<T>(load(x[i]) * scale + shift + load(residual[i]));
  } else if (rate.is_linear()) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = store<T>(load(x[i]) * scale);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = store<T>(load(x[i]) * scale + shift);
  }
}

// y = fill [+ residual].
template <class T>
void fill_span(const T* residual, T* y, int64_t n, const DropRate& rate) {
  const auto fill = OpMath<T>(rate.fill);
  if (!residual) {
    std::fill_n(y, n, store<T>(fill));
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = store<T>(load(residual[i]) + fill);
  }
}

template <class T>
struct Tensors {
  const T *x, *residual;
  T* y;

  explicit Tensors(const FeatureDropoutCall& call)
      : x(static_cast<const T*>(call.x)), residual(static_cast<const T*>(call.residual)), y(static_cast<T*>(call.y)) {}

  const T* residual_at(int64_t i) const { return residual ? residual + i : nullptr; }
};

template <class T>
void drop_groups(const FeatureDropoutCall& call, const Mask& mask) {
  const Tensors<T> t(call);
  const int64_t group_size = call.groups.outer;
  const bool stream = call.x != call.y && worth_streaming(call.numel, sizeof(T));
  parallel_tasks((call.numel + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t end = std::min(call.numel, (task + 1) * kTask);
    int64_t i = task * kTask, group = i / group_size;
    GroupWords words(mask, group_size >= kLongGroup);
    for (; i < end; ++group) {
      const int64_t n = std::min(end, (group + 1) * group_size) - i;
      const bool keep = words.get(uint64_t(group)) >= mask.rate.threshold;
      emit(t.y + i, n, stream, [&](T* to, int64_t first, int64_t count) {
        if (keep)
          keep_span(t.x + i + first, t.residual_at(i + first), to, count, mask.rate);
        else
          fill_span(t.residual_at(i + first), to, count, mask.rate);
      });
      i += n;
    }
    if (stream) stream_fence();
  });
}

// A row of up to OrderedWords::count channels, which have a word each.
template <class T>
void drop_row(const T* x, const T* residual, T* y, int64_t n, const uint32_t* word, const DropRate& rate) {
  if (!residual) return drop_span(x, y, n, word, rate);
  using V = OpMath<T>;
  const uint32_t threshold = uint32_t(rate.threshold);
  const V scale = V(rate.scale), shift = V(rate.shift), fill = V(rate.fill);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const V kept = load(x[i]) * scale + shift;
    y[i] = store<T>((word[i] >= threshold ? kept : fill) + load(residual[i]));
  }
}

// For the channels of channels_last tensors. A task takes some rows of a sample, and as many channels at a time as one
// call computes words for.
template <class T>
void drop_rows(const FeatureDropoutCall& call, const Mask& mask) {
  const Tensors<T> t(call);
  const int64_t C = call.groups.inner, rows_of_sample = call.groups.outer / C;
  const int64_t rows_of_task = std::max<int64_t>(1, std::min(rows_of_sample, kTask / C));
  const int64_t tasks_of_sample = (rows_of_sample + rows_of_task - 1) / rows_of_task;
  parallel_tasks(call.numel / call.groups.outer * tasks_of_sample, [&](int64_t task) {
    const int64_t sample = task / tasks_of_sample, first = task % tasks_of_sample * rows_of_task;
    const int64_t last = std::min(rows_of_sample, first + rows_of_task);
    OrderedWords words;
    for (int64_t c = 0, count = 0; c < C; c += count) {
      const uint64_t group = uint64_t(sample * C + c);
      const uint32_t* word = words.fill(mask, group);
      count = std::min<int64_t>(C - c, OrderedWords::count - int64_t(group % 4));
      for (int64_t row = first; row < last; ++row) {
        const int64_t i = (sample * rows_of_sample + row) * C + c;
        drop_row(t.x + i, t.residual_at(i), t.y + i, count, word, mask.rate);
      }
    }
  });
}

void feature_dropout(const FeatureDropoutCall& call) {
  const Mask mask(call.mask);
  if (!call.numel) return;
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (call.channels_innermost() && !mask.rate.drops_all())
      drop_rows<T>(call, mask);
    else
      drop_groups<T>(call, mask);
  });
}

const Provided provided(kernels::feature_dropout, feature_dropout);

}  // namespace
}  // namespace fusedtricks::cpu

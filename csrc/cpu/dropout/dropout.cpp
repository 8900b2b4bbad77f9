// Dropout in one pass. The backward is the same pass over dy.
#include "calls/dropout.h"

#include "cpu/dropout/mask_sweeps.h"

namespace fusedtricks::cpu {
namespace {

// Element i in memory has word i. Computing the words of a step uses no memory bandwidth: meanwhile the elements of a
// later step are prefetched, and results of earlier ones are written back.
template <class T>
void drop_contiguous(const T* x, T* y, int64_t n, const Mask& mask) {
  constexpr int64_t kTask = 16384, kStep = OrderedWords::count, kAhead = 4096 / sizeof(T);
  static_assert(kTask % kStep == 0 && kStep <= kTile);
  const bool stream = x != y && worth_streaming(n, sizeof(T));

  parallel_tasks((n + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kTask);
    for (int64_t i = task * kTask; i < end; i += kStep) {
      OrderedWords words;
      for (int64_t j = 0; j < kStep; j += kCacheLine / int64_t(sizeof(T))) __builtin_prefetch(x + i + kAhead + j);
      const uint32_t* word = words.fill(mask, uint64_t(i));
      emit(y + i, std::min(kStep, end - i), stream,
           [&](T* to, int64_t, int64_t count) { drop_span(x + i, to, count, word, mask.rate); });
    }
    if (stream) stream_fence();
  });
}

template <class T>
void drop_channels_last(const T* x, T* y, const Layout& layout, const Mask& mask) {
  for_row_blocks(layout, [&](int64_t, int64_t sample, int64_t s0, int positions) {
    for_row_steps(mask, layout, sample, s0, positions,
                  [&](int64_t i, int64_t n, const uint32_t* word) { drop_span(x + i, y + i, n, word, mask.rate); });
  });
}

void dropout(const DropoutCall& call) {
  const Mask mask(call.mask);
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* x = static_cast<const T*>(call.x);
    T* y = static_cast<T*>(call.y);
    if (mask.rate.drops_all())
      std::fill_n(y, call.numel(), T(0));
    else if (call.in_logical_order)
      drop_contiguous(x, y, call.numel(), mask);
    else
      drop_channels_last(x, y, call.layout, mask);
  });
}

const Provided provided(kernels::dropout, dropout);

}  // namespace
}  // namespace fusedtricks::cpu

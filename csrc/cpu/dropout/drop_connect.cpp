// Drops a block of a weight into scratch memory and, with the same random words, the block of the weight's gradient in
// place.
#include "calls/drop_connect.h"

#include "core/dtypes.h"
#include "cpu/dropout/mask.h"

namespace fusedtricks::cpu {
namespace {

// Calls span(offset, n, words) for parts of the elements [first, first + count); offsets count from `first`.
template <class Span>
void for_words(int64_t first, int64_t count, const Mask& mask, const Span& span) {
  OrderedWords words;
  for (int64_t i = 0, n = 0; i < count; i += n) {
    const uint32_t* word = words.fill(mask, uint64_t(first + i));
    n = std::min(OrderedWords::count - (first + i) % 4, count - i);
    span(i, n, word);
  }
}

// scratch = dropout of the block. gradient may be null.
template <class T>
void drop_block(const T* weight, T* scratch, T* gradient, int64_t first, int64_t count, const Mask& mask) {
  if (mask.rate.drops_all()) {
    std::fill_n(scratch, count, T(0));
    if (gradient) std::fill_n(gradient + first, count, T(0));
    return;
  }
  const uint32_t threshold = uint32_t(mask.rate.threshold);
  const auto scale = OpMath<T>(mask.rate.scale);
  for_words(first, count, mask, [&](int64_t i, int64_t n, const uint32_t* word) {
    drop_span(weight + first + i, scratch + i, n, word, threshold, scale);
    if (gradient) drop_span(gradient + first + i, gradient + first + i, n, word, threshold, scale);
  });
}

void drop_block(const DroppedBlockCall& call) {
  const Mask mask(call.mask);
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    drop_block(static_cast<const T*>(call.weight), static_cast<T*>(call.scratch), static_cast<T*>(call.gradient),
               call.first, call.count, mask);
  });
}

const Provided provided(kernels::drop_block, static_cast<void (*)(const DroppedBlockCall&)>(drop_block));

}  // namespace
}  // namespace fusedtricks::cpu

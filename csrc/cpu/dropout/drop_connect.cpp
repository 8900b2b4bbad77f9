// Products with a dropped weight, by blocks of the weight's rows: a block is dropped into a cache and multiplied there,
// each on one thread. The backward drops weight and gradient by the same words, computed once.
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include "checks/checks.h"
#include "calls/dropout.h"
#include "core/dtypes.h"
#include "cpu/parallel_tasks.h"
#include "cpu/dropout/mask.h"
#include "cpu/dropout/random.h"

namespace fusedtricks::cpu {
namespace {

using at::Tensor;

constexpr int64_t kBlock = 1 << 16;  // elements of a block, so that two and what they meet stay in a cache
constexpr int64_t kGroups = 8;       // sums of the gradient of the input that are made side by side, at most

// Blocks of whole rows of a matrix, and groups of neighbouring blocks that are summed one after another.
struct Blocks {
  int64_t rows, columns, rows_each, count;

  explicit Blocks(const Tensor& weight) : rows(weight.size(0)), columns(weight.size(1)) {
    rows_each = std::clamp<int64_t>(kBlock / std::max<int64_t>(1, columns), 1, std::max<int64_t>(1, rows));
    count = (rows + rows_each - 1) / rows_each;
  }

  int64_t first(int64_t block) const { return block * rows_each; }
  int64_t rows_of(int64_t block) const { return std::min(rows_each, rows - first(block)); }
};

// Calls span(offset, n, words) for parts of the elements from `first` on.
template <class Span>
void for_words(int64_t first, int64_t count, const Mask& mask, const Span& span) {
  OrderedWords words;
  for (int64_t i = 0, n = 0; i < count; i += n) {
    const uint32_t* word = words.fill(mask, uint64_t(first + i));
    n = std::min(OrderedWords::count - (first + i) % 4, count - i);
    span(i, n, word);
  }
}

// The rows of a block of weight, dropped, in scratch; where there is a gradient, its rows in place.
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

// Calls f(block, scratch) for the blocks from `begin` to `end`, on a thread of its own that autograd knows nothing of.
template <class F>
void for_blocks(const Blocks& blocks, const Tensor& weight, int64_t begin, int64_t end, const F& f) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const Tensor scratch = at::empty({blocks.rows_each, blocks.columns}, weight.options());
  for (int64_t block = begin; block < end; ++block) f(block, scratch.narrow(0, 0, blocks.rows_of(block)));
}

void drop(const Blocks& blocks, int64_t block, const Tensor& weight, const Tensor& scratch, const Tensor& gradient,
          const Mask& mask) {
  visit_dtype(weight.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    drop_block(weight.const_data_ptr<T>(), scratch.data_ptr<T>(), gradient.defined() ? gradient.data_ptr<T>() : nullptr,
               blocks.first(block) * blocks.columns, scratch.numel(), mask);
  });
}

std::tuple<Tensor, Tensor> dropped_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          double p, std::optional<int64_t> seed) {
  check_dropped_linear(input, weight, p);
  const Tensor rng_state = at::empty({2}, weight.options().dtype(at::kLong)), w = weight.contiguous();
  rng_state.data_ptr<int64_t>()[0] = seed ? *seed : int64_t(draw_seed());
  rng_state.data_ptr<int64_t>()[1] = 0;
  const Mask mask(rng_state.const_data_ptr<int64_t>(), DropRate::make(p, DropMode::kInverted));
  const Blocks blocks(w);
  const Tensor output = at::empty({input.size(0), blocks.rows}, input.options());
  at::parallel_for(0, blocks.count, 1, [&](int64_t begin, int64_t end) {
    for_blocks(blocks, w, begin, end, [&](int64_t block, const Tensor& scratch) {
      drop(blocks, block, w, scratch, {}, mask);
      Tensor columns = output.narrow(1, blocks.first(block), scratch.size(0));
      if (bias)
        at::addmm_out(columns, bias->narrow(0, blocks.first(block), scratch.size(0)), input, scratch.t());
      else
        at::mm_out(columns, input, scratch.t());
    });
  });
  return {output, rng_state};
}

std::tuple<Tensor, Tensor> dropped_linear_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                   const Tensor& rng_state, double p) {
  check_dropped_linear(input, weight, p);
  check_rng_state(rng_state, grad_output);
  const Mask mask(rng_state.contiguous().const_data_ptr<int64_t>(), DropRate::make(p, DropMode::kInverted));
  const Tensor w = weight.contiguous();
  const Blocks blocks(w);
  const Tensor grad_weight = at::empty({blocks.rows, blocks.columns}, weight.options());
  // Sums over groups of blocks, which the shape alone decides; all of them are no more than the weight.
  const int64_t most = blocks.rows / std::max<int64_t>(1, input.size(0));
  const int64_t groups = std::clamp<int64_t>(std::min(most, kGroups), 1, std::max<int64_t>(1, blocks.count));
  const Tensor partial = at::empty({groups, input.size(0), blocks.columns}, input.options());
  parallel_tasks(groups, [&](int64_t group) {
    const int64_t begin = blocks.count * group / groups, end = blocks.count * (group + 1) / groups;
    for_blocks(blocks, w, begin, end, [&](int64_t block, const Tensor& scratch) {
      const Tensor g = grad_output.narrow(1, blocks.first(block), scratch.size(0));
      Tensor dw = grad_weight.narrow(0, blocks.first(block), scratch.size(0)), dx = partial.select(0, group);
      at::mm_out(dw, g.t(), input);
      drop(blocks, block, w, scratch, grad_weight, mask);
      if (block == begin)
        at::mm_out(dx, g, scratch);
      else
        at::addmm_out(dx, dx, g, scratch);
    });
  });
  return {groups == 1 ? partial.select(0, 0) : partial.sum(0), grad_weight};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, CPU, m) {
  m.impl("dropped_linear", dropped_linear);
  m.impl("dropped_linear_backward", dropped_linear_backward);
}

}  // namespace fusedtricks::cpu

// Sweeps over a tensor whose elements come with their words: in logical order, or by rows of channels.
#pragma once

#include "core/layout.h"
#include "cpu/dropout/row_mask.h"
#include "cpu/parallel_tasks.h"

namespace fusedtricks::cpu {

// Calls f(i, n, words) for the elements [begin, end) in order, as many as have their words at once.
template <class F>
void for_steps(const Mask* mask, int64_t begin, int64_t end, const F& f) {
  OrderedWords words;
  for (int64_t i = begin, n = 0; i < end; i += n) {
    n = std::min(OrderedWords::count - i % 4, end - i);
    f(i, n, mask ? words.fill(*mask, uint64_t(i)) : nullptr);
  }
}

// Calls f(i, n, words) for the rows of a block of positions of a sample, some channels of a row at a time.
template <class F>
void for_row_steps(const Mask& mask, const Layout& layout, int64_t sample, int64_t s0, int positions, const F& f) {
  const int64_t C = layout.channels, S = layout.positions;
  RowWords words;
  uint32_t row[kChannels];
  for (int64_t c = 0; c < C; c += kChannels) {
    const int count = int(std::min<int64_t>(kChannels, C - c));
    words.fill((sample * C + c) * S + s0, count, S, positions, mask);
    for (int s = 0; s < positions; ++s) f((sample * S + s0 + s) * C + c, count, words.of(s, count, row));
  }
}

inline int64_t row_blocks_of_sample(const Layout& layout) { return (layout.positions + kPositions - 1) / kPositions; }
inline int64_t row_blocks(const Layout& layout) { return layout.samples * row_blocks_of_sample(layout); }

// Calls block(number, sample, first position, positions) for the blocks of rows, each on one thread.
template <class F>
void for_row_blocks(const Layout& layout, const F& block) {
  const int64_t S = layout.positions, blocks = row_blocks_of_sample(layout);
  parallel_tasks(row_blocks(layout), [&](int64_t task) {
    const int64_t s0 = task % blocks * kPositions;
    block(task, task / blocks, s0, int(std::min<int64_t>(kPositions, S - s0)));
  });
}

}  // namespace fusedtricks::cpu

// Sweeps over a tensor that bring the random words of its elements.
#pragma once

#include "core/layout.h"
#include "cpu/dropout/row_mask.h"
#include "cpu/parallel_tasks.h"

namespace fusedtricks::cpu {

// Calls f(i, n, words) for elements [i, i + n), until all of [begin, end) are done; words is null without a mask.
template <class F>
void for_steps(const Mask* mask, int64_t begin, int64_t end, const F& f) {
  OrderedWords words;
  for (int64_t i = begin, n = 0; i < end; i += n) {
    n = std::min(OrderedWords::count - i % 4, end - i);
    f(i, n, mask ? words.fill(*mask, uint64_t(i)) : nullptr);
  }
}

// Calls f(i, n, words) for a block of positions of a sample of a channels_last tensor: for some channels of one
// position at a time.
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

// Calls block(number, sample, first position, positions) for all blocks of positions of a channels_last tensor, in
// parallel.
template <class F>
void for_row_blocks(const Layout& layout, const F& block) {
  const int64_t S = layout.positions, blocks = row_blocks_of_sample(layout);
  parallel_tasks(row_blocks(layout), [&](int64_t task) {
    const int64_t s0 = task % blocks * kPositions;
    block(task, task / blocks, s0, int(std::min<int64_t>(kPositions, S - s0)));
  });
}

}  // namespace fusedtricks::cpu

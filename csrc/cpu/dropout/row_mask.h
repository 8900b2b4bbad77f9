// Dropout masks of channels_last tensors: neighbours in memory are channels, whose words lie far apart in logical
// order, while the words of one channel's positions follow each other.
#pragma once

#include "cpu/dropout/mask.h"

namespace fusedtricks::cpu {

// Which elements are kept, for up to 1024 channels and 32 positions: bit p of bits[c] for position p of channel c.
struct KeptBits {
  static constexpr int positions = 32, channels = 1024;

  alignas(kCacheLine) uint32_t bits[channels];

  // For `count` channels. `first` is the logical index of the first channel's first position; that of the next channel
  // is channel_stride further on.
  void fill(int64_t first, int count, int64_t channel_stride, int position_count, const Mask& mask);

  // y = x * scale where kept at one position, otherwise 0, for n channels and their bits. y may be x.
  template <class From, class To>
  static void drop(const From* x, To* y, int64_t n, const uint32_t* bits, int position, OpMath<To> scale) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = store<To>(masked(load(x[i]) * scale, bits[i] >> position & 1, 1));
  }
};

// Channels and positions of a tile of RowWords.
constexpr int kChannels = 64, kPositions = 64;

// The words of a tile of channels and positions. A channel's blocks of four words are stored from its first one on, and
// its first position may be any of that block's.
struct RowWords {
  // Word w of the channel's blocks, counted from the first: word[w * kChannels + channel].
  alignas(kCacheLine) uint32_t word[(kPositions / 4 + 1) * 4 * kChannels];
  int32_t start[kChannels];  // index in `word` of the channel's first position
  bool aligned = true;       // whether the first position of every channel is the first of its block

  // For `count` channels, with the same arguments as KeptBits::fill.
  void fill(int64_t first, int count, int64_t channel_stride, int positions, const Mask& mask);

  // The words of all channels at one position: in place, or gathered into `row` where the channels are not aligned.
  const uint32_t* of(int position, int count, uint32_t* row) const {
    const uint32_t* at = word + position * kChannels;
    if (aligned) return at;
#pragma omp simd
    for (int c = 0; c < count; ++c) row[c] = at[start[c]];
    return row;
  }
};

}  // namespace fusedtricks::cpu

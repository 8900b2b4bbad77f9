// The random words of masks. Philox, unrolled for all its vectors, is large: it is compiled here and nowhere else.
#include "cpu/dropout/row_mask.h"

namespace fusedtricks::cpu {

const uint32_t* OrderedWords::fill(const Mask& mask, uint64_t index) {
  Words lane{};
  for (int j = 0; j < kWordLanes; ++j) lane[j] = j;
  const uint64_t counter = index / 4;
  PhiloxLanes([&](int v) { return lane + (counter + v * kWordLanes); }, mask.seed, mask.offset).store_interleaved(word);
  return word + index % 4;
}

void KeptBits::fill(int64_t first, int count, int64_t channel_stride, int position_count, const Mask& mask) {
  if (mask.rate.drops_all()) return void(std::fill_n(bits, count, 0));
  const Words low = Words{} + 0xffffffffu;
  const SignedWords threshold = SignedWords{} + int64_t(mask.rate.threshold);
  // A channel's first position may lie inside a block: then one block more is needed.
  const bool aligned = first % 4 == 0 && channel_stride % 4 == 0;
  const int blocks = (position_count + (aligned ? 0 : 3) + 3) / 4;
  for (int c = 0; c < count; c += kCountersAtOnce) {
    Words index[kPhiloxVectors] = {}, kept[kPhiloxVectors] = {};
    for (int v = 0; v < kPhiloxVectors; ++v) {
      Words of_vector{};
      for (int j = 0; j < kWordLanes; ++j) of_vector[j] = uint64_t(first + (c + v * kWordLanes + j) * channel_stride);
      index[v] = of_vector;
    }
    for (int block = 0; block < blocks; ++block) {
      const PhiloxLanes lanes([&](int v) { return (index[v] >> 2) + uint64_t(block); }, mask.seed, mask.offset);
      for (int v = 0; v < kPhiloxVectors; ++v) {
        for (int w = 0; w < 4; ++w) {
          const Words is_kept = Words(SignedWords(lanes.word[v][w] & low) >= threshold);
          kept[v] |= is_kept & (Words{} + (uint64_t(1) << (4 * block + w)));
        }
      }
    }
    for (int v = 0; v < kPhiloxVectors; ++v) {
      const Words from_first = kept[v] >> (index[v] & 3);
      for (int j = 0; j < kWordLanes && c + v * kWordLanes + j < count; ++j) {
        bits[c + v * kWordLanes + j] = uint32_t(from_first[j]);
      }
    }
  }
}

void RowWords::fill(int64_t first, int count, int64_t channel_stride, int positions, const Mask& mask) {
  alignas(kCacheLine) uint64_t counter[kChannels] = {};
  aligned = true;
  for (int c = 0; c < count; ++c) {
    const uint64_t index = uint64_t(first + c * channel_stride);
    counter[c] = index / 4;
    start[c] = int32_t(index % 4) * kChannels + c;
    aligned &= index % 4 == 0;
  }
  // A vector holds the same block of some channels. Vectors are numbered through all channels of a block, then all
  // blocks, and kPhiloxVectors of them are computed at a time.
  const int vectors = (count + kWordLanes - 1) / kWordLanes, total = ((positions + 2) / 4 + 1) * vectors;
  for (int first_vector = 0; first_vector < total; first_vector += kPhiloxVectors) {
    const auto counters = [&](int v) {
      const int vector = first_vector + v;
      Words of_block_0;
      std::memcpy(&of_block_0, counter + vector % vectors * kWordLanes, sizeof(of_block_0));
      return of_block_0 + uint64_t(vector / vectors);
    };
    const PhiloxLanes lanes(counters, mask.seed, mask.offset);
    for (int v = 0; v < std::min(kPhiloxVectors, total - first_vector); ++v) {
      const int vector = first_vector + v;
      lanes.store_planar(v, word + vector / vectors * 4 * kChannels + vector % vectors * kWordLanes, kChannels);
    }
  }
}

}  // namespace fusedtricks::cpu

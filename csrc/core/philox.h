// Philox4x32-10: random bits as a pure function of (seed, offset, index), shared by host and device.
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//
// Element i of a tensor, counted in logical (row-major) order whatever its strides, has word i % 4 of the block with
// key = seed and counter = (i / 4, offset). So no mask is ever stored: seed and offset determine it.
#pragma once

#include <cstdint>

#include "core/elementary.h"

namespace fusedtricks {

// The 64-bit product of two words. On the device in two halves: nvcc would multiply 64-bit numbers, because it does not
// know that their high halves are zero.
struct ScalarMultiply {
  FT_INLINE uint64_t operator()(uint32_t a, uint32_t m) const {
#if defined(__CUDA_ARCH__)
    return uint64_t(__umulhi(a, m)) << 32 | a * m;
#else
    return uint64_t(a) * m;
#endif
  }
};

// Turns the counter words of n states into random words, in place. V is a word, or a vector with one word in each
// 64-bit lane; then the high halves of the lanes are garbage: the multiplication ignores them, and the caller has to
// mask them in the results. All states take a round together, so that none waits for its own multiplications.
template <int n, class V, class Multiply>
FT_INLINE void philox4x32_10(V (&state)[n][4], uint64_t seed, Multiply multiply) {
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  FT_UNROLL
  for (int round = 0; round < 10; ++round) {
    FT_UNROLL
    for (int i = 0; i < n; ++i) {
      V* c = state[i];
      const auto product0 = multiply(c[0], 0xD2511F53u), product1 = multiply(c[2], 0xCD9E8D57u);
      c[0] = V(product1 >> 32) ^ c[1] ^ key0;
      c[2] = V(product0 >> 32) ^ c[3] ^ key1;
      c[1] = V(product1);
      c[3] = V(product0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// The random blocks of n counters.
template <int n>
FT_INLINE void philox_blocks(uint64_t seed, uint64_t offset, const uint64_t (&counters)[n], uint32_t (&words)[n][4]) {
  FT_UNROLL
  for (int i = 0; i < n; ++i) {
    words[i][0] = uint32_t(counters[i]);
    words[i][1] = uint32_t(counters[i] >> 32);
    words[i][2] = uint32_t(offset);
    words[i][3] = uint32_t(offset >> 32);
  }
  philox4x32_10(words, seed, ScalarMultiply{});
}

struct PhiloxBlock {
  uint32_t word[4];
};

FT_INLINE PhiloxBlock philox_block(uint64_t seed, uint64_t offset, uint64_t counter) {
  uint32_t words[1][4];
  philox_blocks(seed, offset, {counter}, words);
  return {{words[0][0], words[0][1], words[0][2], words[0][3]}};
}

}  // namespace fusedtricks

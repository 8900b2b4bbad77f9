// The probability of dropping, as the kernels use it.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace fusedtricks {

// What becomes of the values that dropout keeps and drops: kept ones are divided by the probability of that, or stay as
// they are; or the values of a self-normalising network stay of mean 0 and variance 1 (alpha dropout, Klambauer et al.,
// 2017), the dropped ones at what SELU tends to.
enum class DropMode { kInverted, kClassic, kAlpha };

// A drop probability as the kernels use it: an element is kept where its word >= threshold. Then it becomes
// x * scale + shift, else `fill`.
struct DropRate {
  uint64_t threshold;  // ceil(p 2^32), 0 … 2^32: the words below it
  double scale, shift = 0, fill = 0;

  // By the probability that the threshold gives exactly.
  static DropRate make(double p, DropMode mode) {
    constexpr double words = 4294967296.0, selu_limit = -1.7580993408473766;
    const double threshold = std::ceil(p * words), kept = (words - threshold) / words, dropped = 1 - kept;
    DropRate rate{uint64_t(threshold), 1};
    if (rate.drops_all()) return rate;
    if (mode == DropMode::kInverted) rate.scale = 1 / kept;
    if (mode == DropMode::kAlpha) {
      rate.scale = 1 / std::sqrt(kept * (1 + dropped * selu_limit * selu_limit));
      rate.shift = -rate.scale * dropped * selu_limit;
      rate.fill = rate.scale * selu_limit + rate.shift;
    }
    return rate;
  }

  FT_INLINE bool drops_all() const { return threshold >> 32; }
  bool keeps_all() const { return threshold == 0; }
  bool is_linear() const { return shift == 0 && fill == 0; }
  // That of the gradient.
  DropRate linear() const { return {threshold, scale}; }
};

}  // namespace fusedtricks

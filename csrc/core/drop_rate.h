// Drop probabilities as the kernels use them.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace fusedtricks {

// What becomes of values:
//   kInverted  kept ones are divided by the probability of being kept, dropped ones become 0
//   kClassic   kept ones stay as they are, dropped ones become 0
//   kAlpha     dropped ones become the limit of SELU at -infinity, then all are scaled and shifted so that mean 0 and
//              variance 1 are preserved. Klambauer et al., "Self-normalizing neural networks", 2017.
enum class DropMode { kInverted, kClassic, kAlpha };

// An element whose random word is at least the threshold is kept and becomes x * scale + shift; others become `fill`.
struct DropRate {
  uint64_t threshold;  // ceil(p 2^32), from 0 (keep all) to 2^32 (drop all)
  double scale, shift = 0, fill = 0;

  // Scales by the probability that the threshold really has, which differs from p by up to 2^-32.
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
  // For the gradient: dropout without shift and fill.
  DropRate linear() const { return {threshold, scale}; }
};

}  // namespace fusedtricks

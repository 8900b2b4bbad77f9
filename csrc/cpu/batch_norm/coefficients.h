// The coefficients of the channels of batch_norm_act, as the loops read them.
#pragma once

#include <vector>

#include "calls/batch_norm.h"
#include "cpu/simd/instruction_set.h"

namespace fusedtricks::cpu {

// A loop gets the coefficients of its elements from OneChannel, if all belong to one channel, or from ManyChannels, if
// each belongs to another. tile_rows: how many rows it takes at once. lanes: in how many lanes it adds up.
template <class V>
struct OneChannel {
  // Few enough for a 7 x 7 plane to fill them.
  static constexpr int tile_rows = 1, lanes = 32 * int(sizeof(float)) / int(sizeof(V));

  V value[kCoefficients];

  OneChannel from(int64_t) const { return *this; }

  template <Coefficient which>
  FT_INLINE V get(int64_t) const {
    return value[which];
  }
};

template <class V>
struct ManyChannels {
  // Four rows share the loads of coefficients. Four vectors each for two sums take a good part of the registers.
  static constexpr int tile_rows = 4, lanes = 4 * kVectorBytes / int(sizeof(V));

  const V* first;  // the first of kCoefficients arrays that are `channels` apart
  int64_t channels;

  template <Coefficient which>
  FT_INLINE V get(int64_t channel) const {
    return first[which * channels + channel];
  }
  ManyChannels from(int64_t channel) const { return {first + channel, channels}; }
};

template <class V>
struct Coefficients {
  std::vector<V> values;
  int64_t channels;

  explicit Coefficients(int64_t c) : values(kCoefficients * c), channels(c) {}

  V& at(Coefficient which, int64_t channel) { return values[which * channels + channel]; }
  OneChannel<V> one(int64_t channel) const {
    OneChannel<V> c;
    for (int i = 0; i < kCoefficients; ++i) c.value[i] = values[i * channels + channel];
    return c;
  }
  ManyChannels<V> many() const { return {values.data(), channels}; }

  void set_forward(int64_t c, double mean, double rstd, double weight, double bias) {
    const ForwardCoefficients<V> one(mean, rstd, weight, bias);
    at(kShift, c) = one.shift;
    at(kScale, c) = one.scale;
    at(kOffset, c) = one.offset;
    at(kRstd, c) = one.rstd;
  }

  // Takes the sums of dz and of dz * (x - shift) * rstd over the channel. Returns dweight.
  double set_backward(int64_t c, double sum_dz, double sum_dz_xhat, double mean, double rstd, double weight,
                      double count, bool training) {
    const BackwardCoefficients<V> one(sum_dz, sum_dz_xhat, mean, at(kShift, c), rstd, weight, count, training);
    at(kSlope, c) = one.slope;
    at(kConstant, c) = one.constant;
    return one.dweight;
  }
};

}  // namespace fusedtricks::cpu

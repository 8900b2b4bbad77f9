// The arithmetic of one BatchNorm channel, for host and device: merging statistics, and the coefficients of the
// elementwise sweeps.
#pragma once

#include "core/scalar.h"

namespace fusedtricks {

// A channel's mean and biased variance.
struct ChannelStatistics {
  double mean, var;
};

// Count, mean and sum of squared deviations from it. Merged by the formula of Chan, Golub & LeVeque, 1979.
template <class V>
struct Moments {
  V count = 0, mean = 0, m2 = 0;

  FT_INLINE void merge(const Moments& other) {
    if (other.count == V(0)) return;
    const V total = count + other.count, share = other.count / total, delta = other.mean - mean;
    m2 += other.m2 + delta * delta * (count * share);
    // If delta is not finite, delta * share could turn an infinite mean into NaN.
    mean = delta * V(0) == V(0) ? mean + delta * share : mean * (count / total) + other.mean * share;
    count = total;
  }
};

enum Coefficient { kShift, kScale, kOffset, kRstd, kSlope, kConstant, kCoefficients };

// Coefficients of the elementwise sweeps
//   z = (x - shift) * scale + offset
//   dx = dz * scale + (x - shift) * rstd * slope + constant
// in the compute type V. The shift is the rounded mean; offset and constant make up for the rounding, so that nothing
// cancels when the mean is large. No coefficient is of the order of rstd^2, which would underflow when x is huge.
template <class V>
struct ForwardCoefficients {
  V shift, scale, offset, rstd;

  FT_INLINE ForwardCoefficients(double mean, double rstd_, double weight, double bias) {
    const double exact_scale = weight * rstd_;
    shift = canonical<V>(mean);
    scale = canonical<V>(exact_scale);
    offset = canonical<V>(bias - (mean - shift) * exact_scale);
    rstd = canonical<V>(rstd_);
  }
};

template <class V>
struct BackwardCoefficients {
  double dweight;
  V slope, constant;

  // The part of dx that comes from the statistics. In evaluation (slope 0) there is none, and an infinite xhat must not
  // make NaN of it.
  static FT_INLINE V of_statistics(V xhat, V slope, V constant) {
    const V sum = xhat * slope + constant;
    return slope == V(0) ? constant : sum;
  }

  // Takes the sums of dz and of dz * (x - shift) * rstd over the channel, and its number of elements.
  FT_INLINE BackwardCoefficients(double sum_dz, double sum_dz_xhat, double mean, V shift, double rstd, double weight,
                                 double count, bool training) {
    const double lost = (mean - shift) * rstd;
    dweight = sum_dz_xhat - lost * sum_dz;
    const double share = -weight * rstd / count, exact_slope = training ? share * dweight : 0;
    slope = canonical<V>(exact_slope);
    constant = training ? canonical<V>(share * sum_dz - exact_slope * lost) : V(0);
  }
};

}  // namespace fusedtricks

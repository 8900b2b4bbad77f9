// What the kernels of batch_norm_act are given, raw memory, and the arithmetic of one channel that they share.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>

#include "activations.h"
#include "element.h"
#include "layout.h"
#include "philox.h"

namespace fusedtricks {

// A one-dimensional tensor of one value per channel, in any floating dtype and stride; none where data is null.
struct ChannelValues {
  void* data = nullptr;
  c10::ScalarType dtype = c10::ScalarType::Float;
  int64_t stride = 1;

  FT_INLINE explicit operator bool() const { return data; }
  FT_INLINE double get(int64_t channel) const {
    const int64_t i = channel * stride;
    switch (dtype) {
      case c10::ScalarType::Float:
        return static_cast<const float*>(data)[i];
      case c10::ScalarType::Double:
        return static_cast<const double*>(data)[i];
      case c10::ScalarType::BFloat16:
        return load(static_cast<const c10::BFloat16*>(data)[i]);
      default:
        return load(static_cast<const c10::Half*>(data)[i]);
    }
  }
  FT_INLINE double get_or(int64_t channel, double otherwise) const { return data ? get(channel) : otherwise; }
  FT_INLINE void set(int64_t channel, double value) const {
    const int64_t i = channel * stride;
    switch (dtype) {
      case c10::ScalarType::Float:
        static_cast<float*>(data)[i] = float(value);
        break;
      case c10::ScalarType::Double:
        static_cast<double*>(data)[i] = value;
        break;
      case c10::ScalarType::BFloat16:
        static_cast<c10::BFloat16*>(data)[i] = store<c10::BFloat16>(canonical<float>(value));
        break;
      default:
        static_cast<c10::Half*>(data)[i] = store<c10::Half>(float(value));
        break;
    }
  }
};

// A channel's mean and biased variance.
struct ChannelStatistics {
  double mean, var;
};

struct BatchNormForward {
  Layout layout;
  c10::ScalarType dtype;
  Activation act;
  const void *x, *residual;  // residual may be null
  void* y;
  ChannelValues weight, bias, running_mean, running_var;
  int64_t* num_batches_tracked;  // may be null
  double *mean, *rstd;           // out: what this call normalised with
  bool training;
  double momentum;  // below 0: the cumulative average
  double eps;
  void* workspace;  // of batch_norm_forward_workspace bytes
  // Dropout of the result, with a mask of this seed, or of torch's generator; none where rng_state is null.
  DropRate rate{};
  std::optional<int64_t> seed{};
  int64_t* rng_state = nullptr;  // out: what the mask follows from

  bool drops() const { return rng_state; }
  FT_INLINE ChannelStatistics running_statistics(int64_t c) const {
    return {running_mean.get(c), running_var.get_or(c, 1)};
  }
  FT_INLINE double rstd_of(ChannelStatistics s) const { return 1 / sqrt(s.var + eps); }

  // Has to come once a call, before any channel is recorded.
  FT_INLINE void count_batch() const {
    if (training && running_mean && num_batches_tracked) ++*num_batches_tracked;
  }
  // Writes what a channel was normalised with and, in training, its running statistics.
  FT_INLINE void record(int64_t c, ChannelStatistics s) const {
    mean[c] = s.mean;
    rstd[c] = rstd_of(s);
    if (!training || !running_mean) return;
    const double count = double(layout.per_channel());
    const double share = momentum < 0 ? 1 / double(*num_batches_tracked) : momentum;
    running_mean.set(c, (1 - share) * running_mean.get(c) + share * s.mean);
    running_var.set(c, (1 - share) * running_var.get(c) + share * (s.var * (count / (count - 1))));
  }
};

// dx, dz, dweight and dbias may be absent. With z = batch_norm(x) + residual the activation's derivative is taken from
// output or, where that is null, at z; dz, the residual's gradient, is then written and must be there.
//
// With dropout behind the activation, dy is masked and scaled first. The output tells the derivative where its sign
// alone says it, and then also what was kept. With the identity there is nothing to tell, and output is dy.
struct BatchNormBackward {
  Layout layout;
  c10::ScalarType dtype;
  Activation act;
  const void *dy, *x, *output, *residual;
  void *dx, *dz;
  ChannelValues weight, bias, dweight, dbias;
  const double *mean, *rstd;
  bool training;
  void* workspace;  // of batch_norm_backward_workspace bytes
  DropRate rate{};
  const int64_t* rng_state = nullptr;  // of the forward's dropout, null where there was none

  FT_INLINE bool drops() const { return rng_state; }
  bool needs_mask() const { return drops() && (!output || act.is_identity()); }
  FT_INLINE bool after_residual() const { return output || residual; }
  FT_INLINE bool needs_sums() const { return (training && dx) || dweight || dbias; }
};

namespace backend {

int64_t batch_norm_forward_workspace(const BatchNormForward& a);
int64_t batch_norm_backward_workspace(const BatchNormBackward& a);
void batch_norm_forward(const BatchNormForward& a);
void batch_norm_backward(const BatchNormBackward& a);

}  // namespace backend

enum Coefficient { kShift, kScale, kOffset, kRstd, kSlope, kConstant, kCoefficients };

// Constants of the elementwise sweeps, for z = (x - shift) * scale + offset and
// dx = dz * scale + (x - shift) * rstd * slope + constant. The shift is the mean rounded to the compute type, and
// offset and constant hold what the rounding lost: nothing cancels when the mean is large. No constant is of the size
// of rstd^2, which would underflow where x is huge.
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

  // The part of dx that comes from the statistics; none in evaluation, where an infinite xhat is no NaN.
  static FT_INLINE V of_statistics(V xhat, V slope, V constant) {
    const V sum = xhat * slope + constant;
    return slope == V(0) ? constant : sum;
  }

  // From the sums over the channel of dz and of dz * (x - shift) * rstd.
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

// Arguments of the kernels of batch_norm_act, and what both devices do for one channel.
#pragma once

#include <c10/core/ScalarType.h>

#include "calls/kernel.h"
#include "core/activation_functions.h"
#include "core/batch_norm_math.h"
#include "core/dtypes.h"
#include "core/layout.h"
#include "core/mask_source.h"

namespace fusedtricks {

// A one-dimensional tensor with one value for each channel, of any dtype and stride. There is none if data is null.
struct ChannelValues {
  void* data = nullptr;
  c10::ScalarType dtype = c10::ScalarType::Float;
  int64_t stride = 1;

  FT_INLINE explicit operator bool() const { return data; }
  FT_INLINE double get(int64_t channel) const {
    double value = 0;
    visit_dtype(dtype, [&](auto type) { value = load(*at<typename decltype(type)::type>(channel)); });
    return value;
  }
  FT_INLINE double get_or(int64_t channel, double otherwise) const { return data ? get(channel) : otherwise; }
  FT_INLINE void set(int64_t channel, double value) const {
    visit_dtype(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      *at<T>(channel) = store_double<T>(value);
    });
  }

 private:
  template <class T>
  FT_INLINE T* at(int64_t channel) const {
    return static_cast<T*>(data) + channel * stride;
  }
};

struct BatchNormForward {
  Layout layout;
  c10::ScalarType dtype;
  Activation act;
  const void *x, *residual;  // residual may be null
  void* y;
  ChannelValues weight, bias, running_mean, running_var;
  int64_t* num_batches_tracked;  // may be null
  double *mean, *rstd;           // written: what this call normalised with; read, if it was recorded
  bool training;
  double momentum;
  bool cumulative;  // average over all batches, whatever the momentum
  double eps;
  void* workspace;    // batch_norm_forward_workspace bytes
  MaskSource mask{};  // of the dropout behind the activation, or none
  // Normalise with the mean and rstd that an earlier call recorded, and record nothing; not in training.
  bool recorded = false;

  bool drops() const { return bool(mask); }
  FT_INLINE ChannelStatistics running_statistics(int64_t c) const {
    return {running_mean.get(c), running_var.get_or(c, 1)};
  }
  FT_INLINE double rstd_of(ChannelStatistics s) const { return 1 / sqrt(s.var + eps); }

  // Call it once, before any channel is recorded.
  FT_INLINE void count_batch() const {
    if (training && num_batches_tracked) ++*num_batches_tracked;
  }
  // Writes what a channel was normalised with and, in training, updates its running statistics.
  FT_INLINE void record(int64_t c, ChannelStatistics s) const {
    mean[c] = s.mean;
    rstd[c] = rstd_of(s);
    if (!training || !running_mean) return;
    const double count = double(layout.per_channel());
    const double share = cumulative ? 1 / double(*num_batches_tracked) : momentum;
    running_mean.set(c, (1 - share) * running_mean.get(c) + share * s.mean);
    running_var.set(c, (1 - share) * running_var.get(c) + share * (s.var * (count / (count - 1))));
  }
};

// With a residual, z = batch_norm(x) + residual, and dz, the residual's gradient, must be there to be written. The
// activation's derivative is read off `output`, if that is given: its activation must then keep its result. Otherwise
// `residual` is given and the derivative is taken at z. Without a residual both are null, as is dz. dx, dweight and
// dbias may be absent.
//
// With dropout behind the activation, dy is masked and scaled first. `output` may then be given only for an activation
// whose result shows the mask, and for the identity, which does not read it: there `output` is dy.
struct BatchNormBackward {
  Layout layout;
  c10::ScalarType dtype;
  Activation act;
  const void *dy, *x, *output, *residual;
  void *dx, *dz;
  ChannelValues weight, bias, dweight, dbias;
  const double *mean, *rstd;
  bool training;
  void* workspace;    // batch_norm_backward_workspace bytes
  MaskSource mask{};  // of the forward's dropout, or none

  FT_INLINE bool drops() const { return bool(mask); }
  bool needs_mask() const { return drops() && (!output || act.is_identity()); }
  FT_INLINE bool after_residual() const { return output || residual; }
  FT_INLINE bool needs_sums() const { return (training && dx) || dweight || dbias; }
};

namespace kernels {

// Bytes of the workspace. They depend on everything else in the call, so it has to be complete but for the workspace.
inline const Kernel<int64_t(const BatchNormForward&)> batch_norm_forward_workspace{"batch_norm_forward_workspace"};
inline const Kernel<int64_t(const BatchNormBackward&)> batch_norm_backward_workspace{"batch_norm_backward_workspace"};
inline const Kernel<void(const BatchNormForward&)> batch_norm_forward{"batch_norm_forward"};
inline const Kernel<void(const BatchNormBackward&)> batch_norm_backward{"batch_norm_backward"};

}  // namespace kernels

}  // namespace fusedtricks

// batch_norm_act forward: one sweep for the statistics, and one for y = act((x - mean) * rstd * weight + bias
// [+ residual]) and its dropout.
#include "cpu/batch_norm/dropout_tiles.h"
#include "cpu/batch_norm/statistics.h"

namespace fusedtricks::cpu {
namespace {

// Writes spans of y.
template <class T, class Channels>
struct ForwardSpans {
  const BatchNormForward& a;
  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  const NormalizeSpan<T, Channels> normalize = normalize_span<T, Channels>(a.act, a.residual);
  const DropSpans<T, Channels> dropped{a.act, x, residual, OpMath<T>(a.mask.rate.scale), normalize};

  explicit ForwardSpans(const BatchNormForward& arguments) : a(arguments) {}

  template <class Dropper>
  void write(T* to, int64_t i, RowSpan span, Channels channels, Dropper& dropper) const {
    if (a.drops())
      dropped.write(to, i, span, channels, dropper);
    else
      normalize(x + i, residual ? residual + i : nullptr, to, span, channels, a.act);
  }
};

template <class T>
void forward_planes(const BatchNormForward& a, const Mask& mask) {
  using V = OpMath<T>;
  const ForwardSpans<T, OneChannel<V>> one(a);
  const ForwardSpans<T, ManyChannels<V>> many(a);
  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  const PlanesPlan plan(a.layout);
  const bool stream = worth_streaming(plan.layout.per_channel() * plan.layout.channels, sizeof(T));
  for_normalized_planes<T>(a, plan, [&](int64_t task, const Coefficients<V>& coefficients) {
    OrderedDropper dropper(mask, 0);
    const auto with = [&](const auto& spans) {
      return [&](T* to, int64_t i, RowSpan span, auto channels) { spans.write(to, i, span, channels, dropper); };
    };
    write_planes(plan, y, task, stream, coefficients, {x, residual}, with(one), with(many));
  });
}

template <class T>
void forward_channels_last(const BatchNormForward& a, const Mask& mask) {
  using V = OpMath<T>;
  const ForwardSpans<T, ManyChannels<V>> spans(a);
  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  const ChannelsLastPlan plan(a.layout, sizeof(T));
  const Coefficients<V> coefficients = row_coefficients<T>(a, plan);
  for_blocks(plan, true, [&](const Block& b) {
    touch_block(plan, x, b);
    if (residual) touch_block(plan, residual, b);
    ChannelsLastDropper dropper(mask, a.layout, false);
    const auto write = [&](const Block& part) {
      write_block(plan, y, part, [&](T* to, int64_t i, int64_t c, RowSpan span) {
        spans.write(to, i, span, coefficients.many().from(c), dropper);
      });
    };
    if (a.drops())
      dropper.for_parts(b, write);
    else
      write(b);
  });
}

int64_t batch_norm_forward_workspace(const BatchNormForward&) { return 0; }

void batch_norm_forward(const BatchNormForward& a) {
  a.count_batch();
  const Mask mask(a.mask);
  visit_dtype(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (a.layout.channels_last)
      forward_channels_last<T>(a, mask);
    else
      forward_planes<T>(a, mask);
  });
}

const Provided provided[] = {
    {kernels::batch_norm_forward_workspace, batch_norm_forward_workspace},
    {kernels::batch_norm_forward, batch_norm_forward},
};

}  // namespace
}  // namespace fusedtricks::cpu

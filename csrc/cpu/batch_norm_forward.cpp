// batch_norm_act forward: one sweep for the statistics, one for y = act((x - mean) * rstd * weight + bias [+
// residual]), and its dropout.
#include "batch_norm_dropout.h"
#include "batch_norm_planes.h"
#include "batch_norm_rows.h"
#include "random.h"

namespace fusedtricks::cpu {
namespace {

// From a channel's moments (in evaluation: its running statistics) to what the second sweep and the backward need.
template <class V>
void finish_channel(const BatchNormForward& a, int64_t c, double mean, double m2, Coefficients<V>& coefficients) {
  const ChannelStatistics s =
      a.training ? ChannelStatistics{mean, m2 / double(a.layout.per_channel())} : a.running_statistics(c);
  a.record(c, s);
  coefficients.set_forward(c, s.mean, a.rstd[c], a.weight.get_or(c, 1), a.bias.get_or(c, 0));
}

// A sweep's write of one span.
template <class T, class Channels>
struct ForwardSpans {
  const BatchNormForward& a;
  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  const NormalizeSpan<T, Channels> normalize = normalize_span<T, Channels>(a.act, a.residual);
  const TileSpans<T, Channels> in_tiles{a.act, bool(a.residual)};

  explicit ForwardSpans(const BatchNormForward& arguments) : a(arguments) {}

  template <class Dropper>
  void write(T* to, int64_t i, RowSpan span, Channels channels, Dropper& dropper) const {
    if (a.drops())
      normalize_and_drop(in_tiles, x, residual, to, i, span, channels, a.act, dropper, a.rate.scale);
    else
      normalize(x + i, residual ? residual + i : nullptr, to, span, channels, a.act);
  }
};

template <class T>
void forward_planes(const BatchNormForward& a, const Mask& mask) {
  using V = Compute<T>;
  const ForwardSpans<T, OneChannel<V>> one(a);
  const ForwardSpans<T, ManyChannels<V>> many(a);
  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  const PlanesPlan plan(a.layout);
  const bool stream = worth_streaming(plan.layout.per_channel() * plan.layout.channels, sizeof(T));
  Coefficients<V> coefficients(a.layout.channels);
  std::vector<Moments> partials(plan.slots());

  for_planes(
      plan,
      [&](int64_t task) {
        if (a.training) plane_moments(plan, x, task, &partials[plan.slot(task)]);
      },
      [&](int64_t c) {
        Moments m;
        for (int64_t part = 0; part < plan.parts; ++part) {
          const Moments& p = partials[plan.slot_of(c, part)];
          m.merge(p.count, p.mean, p.m2);
        }
        finish_channel(a, c, m.mean, m.m2, coefficients);
      },
      [&](int64_t task) {
        OrderedDropper dropper(mask, 0);
        const auto with = [&](const auto& spans) {
          return [&](T* to, int64_t i, RowSpan span, auto channels) { spans.write(to, i, span, channels, dropper); };
        };
        write_planes(plan, y, task, stream, coefficients, {x, residual}, with(one), with(many));
      });
}

template <class T>
void forward_rows(const BatchNormForward& a, const Mask& mask) {
  using V = Compute<T>;
  const ForwardSpans<T, ManyChannels<V>> spans(a);
  const T *x = static_cast<const T*>(a.x), *residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  const RowsPlan plan(a.layout, sizeof(T));
  Coefficients<V> coefficients(plan.channels);
  RowPartials partials(plan);

  if (a.training) {
    for_blocks(plan, false, [&](const Block& b) {
      touch_block(plan, x, b);
      for (int64_t c = b.c0; c < b.c1; c += ManyChannels<V>::lanes) {
        add_tile_moments(x + b.r0 * plan.channels + c, b.r1 - b.r0, plan.channels,
                         int(std::min<int64_t>(ManyChannels<V>::lanes, b.c1 - c)), partials.first(b.chunk) + c,
                         partials.second(b.chunk) + c, b.done);
      }
    });
  }
  for_channels(plan, [&](int64_t c) {
    Moments m;
    for (int64_t i = 0; a.training && i < plan.row_chunks; ++i) {
      m.merge(double(plan.first_row(i + 1) - plan.first_row(i)), partials.first(i)[c], partials.second(i)[c]);
    }
    finish_channel(a, c, m.mean, m.m2, coefficients);
  });
  for_blocks(plan, true, [&](const Block& b) {
    touch_block(plan, x, b);
    if (residual) touch_block(plan, residual, b);
    RowsDropper dropper(mask, a.layout, false);
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

// Draws the mask of the call's dropout and records it; any mask where there is none.
Mask draw_mask(const BatchNormForward& a) {
  int64_t state[] = {0, 0};
  if (a.drops()) {
    state[0] = a.seed ? *a.seed : int64_t(draw_seed());
    std::copy(state, state + 2, a.rng_state);
  }
  return {state, a.rate};
}

}  // namespace
}  // namespace fusedtricks::cpu

int64_t fusedtricks::backend::batch_norm_forward_workspace(const BatchNormForward&) { return 0; }

void fusedtricks::backend::batch_norm_forward(const BatchNormForward& a) {
  a.count_batch();
  const cpu::Mask mask = cpu::draw_mask(a);
  visit_dtype(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (a.layout.rows)
      cpu::forward_rows<T>(a, mask);
    else
      cpu::forward_planes<T>(a, mask);
  });
}

// The statistics of a BatchNorm's forward, and what follows from them: each channel is recorded, and its coefficients
// set for the sweep that normalises.
#pragma once

#include "cpu/batch_norm/channels_last.h"
#include "cpu/batch_norm/planes.h"

namespace fusedtricks::cpu {

// From a channel's moments (in evaluation: its running statistics) to what the second sweep and the backward need.
template <class V>
void finish_channel(const BatchNormForward& a, int64_t c, double mean, double m2, Coefficients<V>& coefficients) {
  const ChannelStatistics s =
      a.training ? ChannelStatistics{mean, m2 / double(a.layout.per_channel())} : a.running_statistics(c);
  a.record(c, s);
  coefficients.set_forward(c, s.mean, a.rstd[c], a.weight.get_or(c, 1), a.bias.get_or(c, 0));
}

// Runs write(task, coefficients) once the channels of a task are finished.
template <class T, class Write>
void for_normalized_planes(const BatchNormForward& a, const PlanesPlan& plan, const Write& write) {
  Coefficients<OpMath<T>> coefficients(a.layout.channels);
  std::vector<Moments<double>> partials(plan.slots());
  for_planes(
      plan,
      [&](int64_t task) {
        if (a.training) plane_moments(plan, static_cast<const T*>(a.x), task, &partials[plan.slot(task)]);
      },
      [&](int64_t c) {
        Moments<double> m;
        for (int64_t part = 0; part < plan.parts; ++part) {
          m.merge(partials[plan.slot_of(c, part)]);
        }
        finish_channel(a, c, m.mean, m.m2, coefficients);
      },
      [&](int64_t task) { write(task, coefficients); });
}

template <class T>
Coefficients<OpMath<T>> row_coefficients(const BatchNormForward& a, const ChannelsLastPlan& plan) {
  using V = OpMath<T>;
  const T* x = static_cast<const T*>(a.x);
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
    Moments<double> m;
    for (int64_t i = 0; a.training && i < plan.row_chunks; ++i) {
      m.merge({double(plan.first_row(i + 1) - plan.first_row(i)), partials.first(i)[c], partials.second(i)[c]});
    }
    finish_channel(a, c, m.mean, m.m2, coefficients);
  });
  return coefficients;
}

}  // namespace fusedtricks::cpu

// The first sweep of a BatchNorm's forward: the statistics of each channel are computed and recorded, and its
// coefficients are set for the sweep that normalises.
#pragma once

#include "cpu/batch_norm/channels_last.h"
#include "cpu/batch_norm/planes.h"

namespace fusedtricks::cpu {

// Records a channel with these moments, or in evaluation with its running statistics; takes what was recorded before.
template <class V>
void finish_channel(const BatchNormForward& a, int64_t c, double mean, double m2, Coefficients<V>& coefficients) {
  if (!a.recorded) {
    a.record(c, a.training ? ChannelStatistics{mean, m2 / double(a.layout.per_channel())} : a.running_statistics(c));
  }
  coefficients.set_forward(c, a.mean[c], a.rstd[c], a.weight.get_or(c, 1), a.bias.get_or(c, 0));
}

// The moments of a task's channels over its chunks.
template <class T>
void plane_moments(const PlanesPlan& plan, const T* x, int64_t task, Moments<double>* moments);

// Calls write(task, coefficients) for every task, after the channels of the task are finished.
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

// Computes the statistics of a channels_last tensor, or takes the running ones, and finishes its channels.
template <class T>
Coefficients<OpMath<T>> row_coefficients(const BatchNormForward& a, const ChannelsLastPlan& plan);

}  // namespace fusedtricks::cpu

#include "cpu/batch_norm/statistics.h"

#include "core/dtypes.h"
#include "cpu/batch_norm/moments.h"

namespace fusedtricks::cpu {

template <class T>
void plane_moments(const PlanesPlan& plan, const T* x, int64_t task, Moments<double>* moments) {
  const int64_t c0 = plan.first_channel(task);
  for (int64_t i = plan.first_chunk(task); i < plan.last_chunk(task); ++i) {
    const Chunk k = plan.chunk(i);
    for (int64_t c = 0; c < plan.channel_count(task); ++c) {
      add_run_moments(x + plan.index(k.n0, c0 + c, k.s0), plan.runs(k), moments[c]);
    }
  }
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

#define FT_INSTANTIATE(name, T)                                                                            \
  template void plane_moments(const PlanesPlan& plan, const T* x, int64_t task, Moments<double>* moments); \
  template Coefficients<OpMath<T>> row_coefficients<T>(const BatchNormForward& a, const ChannelsLastPlan& plan);
FT_FOR_EACH_DTYPE(FT_INSTANTIATE)

}  // namespace fusedtricks::cpu

// batch_norm_act backward: one sweep for the two sums of each channel, and one for dx.
//
// With a residual the first sweep also writes dz, the residual's gradient, and both sweeps start from dz as it was
// rounded. With dropout and no residual the first sweep writes the masked dy into the memory of dx, and both start from
// that; the mask's scale multiplies the sums, and dx in its loop, so that nothing is rounded twice.
#include "cpu/batch_norm/backward_pass.h"

#include "cpu/batch_norm/channels_last.h"
#include "cpu/batch_norm/planes.h"

namespace fusedtricks::cpu {
namespace {

// Writes what the sums start from behind dropout, through all channels of a sample: their words follow each other.
template <class T>
void write_dropped_planes(const PlanesPlan& plan, const Pass<T>& pass, int64_t task, const Chunk& k) {
  const int64_t c0 = plan.first_channel(task);
  OrderedDropper dropper(pass.mask, 4096 / int64_t(sizeof(T)));
  for (int64_t n = k.n0; n < k.n1; ++n) {
    const int64_t next = plan.index(n + 1, c0, k.s0), row = plan.channel_count(task) * (k.s1 - k.s0);
    prefetch(pass.dy + next, row);
    prefetch(pass.first_result + next, row);
    for (int64_t c = c0; c < c0 + plan.channel_count(task); ++c) {
      pass.write_dropped(plan.index(n, c, k.s0), k.s1 - k.s0, pass.coefficients.one(c), dropper);
    }
  }
}

// Adds up a task's chunks.
template <class T>
void plane_sums(const PlanesPlan& plan, const Pass<T>& pass, int64_t task, Sums* sums) {
  using Channel = OneChannel<OpMath<T>>;
  const BackwardSpans<T, Channel> spans(pass);
  const int64_t c0 = plan.first_channel(task);
  for (int64_t i = plan.first_chunk(task); i < plan.last_chunk(task); ++i) {
    const Chunk k = plan.chunk(i);
    if (pass.a.drops()) write_dropped_planes(plan, pass, task, k);
    for (int64_t c = 0; c < plan.channel_count(task); ++c) {
      const Channel channel = pass.coefficients.one(c0 + c);
      for (int64_t n = k.n0; pass.writes_dz_before_sums() && n < k.n1; ++n) {
        pass.write_dz(plan.index(n, c0 + c, k.s0), k.s1 - k.s0, channel);
      }
      Lanes<Channel> lanes;
      spans.add(plan.index(k.n0, c0 + c, k.s0), plan.runs(k), channel, lanes);
      sums[c].dz += lanes.total_sum();
      sums[c].dz_xhat += lanes.total_product();
    }
  }
}

template <class T>
void backward_planes(Pass<T>& pass) {
  using V = OpMath<T>;
  const PlanesPlan plan(pass.a.layout);
  const BackwardSpans<T, OneChannel<V>> one(pass);
  const BackwardSpans<T, ManyChannels<V>> many(pass);
  const bool stream =
      !pass.is_in_place() && worth_streaming(plan.layout.per_channel() * plan.layout.channels, sizeof(T));
  std::vector<Sums> partials(plan.slots());

  for_planes(
      plan,
      [&](int64_t task) {
        if (pass.sweeps_first()) plane_sums(plan, pass, task, &partials[plan.slot(task)]);
      },
      [&](int64_t c) {
        Sums s;
        for (int64_t part = 0; part < plan.parts; ++part) {
          const Sums& p = partials[plan.slot_of(c, part)];
          s.dz += p.dz;
          s.dz_xhat += p.dz_xhat;
        }
        pass.finish_channel(c, s);
      },
      [&](int64_t task) {
        if (!pass.dx) return;
        const auto with = [&](const auto& spans) {
          return [&](T* to, int64_t i, RowSpan span, auto channels) { spans.write_dx(to, i, span, channels); };
        };
        write_planes(plan, pass.dx, task, stream, pass.coefficients, {pass.x, pass.start}, with(one), with(many));
      });
}

template <class T>
void row_sums(const ChannelsLastPlan& plan, const Pass<T>& pass, const Block& b, RowPartials& partials) {
  using Channels = ManyChannels<OpMath<T>>;
  const Channels channels = pass.coefficients.many();
  const bool streams_dz =
      plan.streams && is_vector_aligned(pass.first_result) && plan.channels * sizeof(T) % kVectorBytes == 0;
  const BackwardSpans<T, Channels> spans(pass, streams_dz);
  touch_block(plan, pass.dy, b);
  if (pass.output) touch_block(plan, pass.output, b);
  if (pass.residual) touch_block(plan, pass.residual, b);
  touch_block(plan, pass.x, b);
  if (pass.a.drops()) {
    ChannelsLastDropper dropper(pass.mask, pass.a.layout, true);
    dropper.for_parts(b, [&](const Block& part) {
      for (int64_t r = part.r0; r < part.r1; ++r) {
        pass.write_dropped(r * plan.channels + part.c0, part.c1 - part.c0, channels.from(part.c0), dropper);
      }
    });
  }
  for (int64_t r = b.r0; pass.writes_dz_before_sums() && r < b.r1; ++r) {
    pass.write_dz(r * plan.channels + b.c0, b.c1 - b.c0, channels.from(b.c0));
  }
  for (int64_t c = b.c0; pass.needs_sums && c < b.c1; c += Channels::lanes) {
    const int width = int(std::min<int64_t>(Channels::lanes, b.c1 - c));
    Lanes<Channels> lanes;
    spans.add(b.r0 * plan.channels + c, Runs{b.r1 - b.r0, plan.channels, width}, channels.from(c), lanes);
    double *sum = partials.first(b.chunk) + c, *product = partials.second(b.chunk) + c;
    for (int j = 0; j < width; ++j) sum[j] += lanes.sum[j];
    for (int j = 0; j < width; ++j) product[j] += lanes.product[j];
  }
  if (plan.streams) stream_fence();
}

template <class T>
void backward_channels_last(Pass<T>& pass) {
  using Channels = ManyChannels<OpMath<T>>;
  ChannelsLastPlan plan(pass.a.layout, sizeof(T));
  if (pass.is_in_place()) plan.streams = false;
  const BackwardSpans<T, Channels> spans(pass);
  RowPartials partials(plan);
  if (pass.sweeps_first()) {
    for_blocks(plan, false, [&](const Block& b) { row_sums(plan, pass, b, partials); });
  }
  for_channels(plan, [&](int64_t c) {
    Sums s;
    for (int64_t i = 0; i < plan.row_chunks; ++i) s.dz += partials.first(i)[c], s.dz_xhat += partials.second(i)[c];
    pass.finish_channel(c, s);
  });
  if (!pass.dx) return;
  for_blocks(plan, true, [&](const Block& b) {
    touch_block(plan, pass.x, b);
    touch_block(plan, pass.start, b);
    write_block(plan, pass.dx, b, [&](T* to, int64_t i, int64_t c, RowSpan span) {
      spans.write_dx(to, i, span, pass.coefficients.many().from(c));
    });
  });
}

// Of dy's size where it is masked, and there is no dx to hold it.
int64_t batch_norm_backward_workspace(const BatchNormBackward& a) {
  const bool is_wanted = a.drops() && !a.after_residual() && !a.dx;
  return is_wanted ? a.layout.per_channel() * a.layout.channels * int64_t(c10::elementSize(a.dtype)) : 0;
}

void batch_norm_backward(const BatchNormBackward& a) {
  visit_dtype(a.dtype, [&](auto type) {
    Pass<typename decltype(type)::type> pass(a);
    if (a.layout.channels_last)
      backward_channels_last(pass);
    else
      backward_planes(pass);
  });
}

const Provided provided[] = {
    {kernels::batch_norm_backward_workspace, batch_norm_backward_workspace},
    {kernels::batch_norm_backward, batch_norm_backward},
};

}  // namespace
}  // namespace fusedtricks::cpu

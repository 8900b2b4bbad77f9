// batch_norm_act backward: one sweep for the two sums of each channel, and one for dx.
//
// With a residual the first sweep also writes dz, the residual's gradient, and both sweeps start from dz as it was
// rounded. With dropout and no residual the first sweep writes the masked dy into the memory of dx, and both start from
// that; the mask's scale multiplies the sums, and dx in its loop, so that nothing is rounded twice.
#include "cpu/batch_norm/channels_last.h"
#include "cpu/batch_norm/dropout_tiles.h"
#include "cpu/batch_norm/planes.h"

namespace fusedtricks::cpu {
namespace {

struct Sums {
  double dz = 0, dz_xhat = 0;
};

// y = x * scale, also from one type to another.
template <class From, class To>
[[gnu::noinline]] void scale_span(const From* x, To* y, int64_t n, OpMath<To> scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<To>(load(x[i]) * scale);
}

// What the sweeps have to do. Both start from `start` and go through `act` to the gradient at the end of the batch
// norm: from dz and the identity where dz is written, otherwise from dy, behind dropout the masked one, and the
// activation.
template <class T>
struct Pass {
  using V = OpMath<T>;

  const BatchNormBackward& a;
  const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy);
  const T *output = static_cast<const T*>(a.output), *residual = static_cast<const T*>(a.residual);
  T *dx = static_cast<T*>(a.dx), *masked_dy = dx ? dx : static_cast<T*>(a.workspace);
  T* first_result = a.after_residual() ? static_cast<T*>(a.dz) : a.drops() ? masked_dy : nullptr;
  const T* start = first_result ? first_result : dy;
  const Activation act = a.after_residual() ? Activation{0, {}} : a.act;
  const bool needs_sums = a.needs_sums();
  DerivativeSpan<T> derivative_of_output = derivative_span<T>(a.act);
  DerivativeAtSpan<T> derivative_at_z = derivative_at_span<T>(a.act);
  DerivativeSpan<V> derivative_of_tile = derivative_span<V>(a.act);
  ActivationSpan<V> activate = activation_span<V>(a.act);
  const Mask mask{a.mask};
  const double scale_of_start = a.drops() && !a.after_residual() ? a.mask.rate.scale : 1;
  Coefficients<V> coefficients{a.layout.channels};

  explicit Pass(const BatchNormBackward& arguments) : a(arguments) {
    for (int64_t c = 0; c < a.layout.channels; ++c) {
      coefficients.set_forward(c, a.mean[c], a.rstd[c], a.weight.get_or(c, 1), a.bias.get_or(c, 0));
    }
  }

  bool sweeps_first() const { return needs_sums || first_result; }
  // Whether dx is written over what it is computed from.
  bool is_in_place() const { return dx && dx == first_result; }

  void finish_channel(int64_t c, Sums s) {
    s.dz *= scale_of_start;
    s.dz_xhat *= scale_of_start;
    const double dweight = coefficients.set_backward(c, s.dz, s.dz_xhat, a.mean[c], a.rstd[c], a.weight.get_or(c, 1),
                                                     double(a.layout.per_channel()), a.training);
    if (a.dweight) a.dweight.set(c, dweight);
    if (a.dbias) a.dbias.set(c, s.dz);
  }

  // dz is written while it is summed, or before: by write_dz, or behind dropout by write_dropped.
  bool writes_dz_in_sums() const { return output && a.act.keeps_result() && needs_sums && !a.drops(); }
  bool writes_dz_before_sums() const { return a.after_residual() && !writes_dz_in_sums() && !a.drops(); }

  // Writes dz for n neighbouring elements behind a residual.
  template <class Channels>
  void write_dz(int64_t first, int64_t n, Channels channels) const {
    if (output) return derivative_of_output(dy + first, output + first, first_result + first, n, a.act);
    for (int64_t i = 0; i < n; i += kTile) {
      V z[kTile];
      const int64_t count = std::min(kTile, n - i), at = first + i;
      normalize_unrounded(x + at, residual + at, z, RowSpan{count, 0, 0}, channels.from(i));
      derivative_at_z(dy + at, z, first_result + at, count, a.act);
    }
  }

  // The same behind dropout; without a residual only dy is masked.
  template <class Channels, class Dropper>
  void write_dropped(int64_t first, int64_t n, Channels channels, Dropper& dropper) const {
    if (!a.after_residual()) return dropper.drop(dy + first, first_result + first, n, first, V(1));
    for (int64_t i = 0; i < n; i += kTile) {
      V gradient[kTile], kept[kTile];
      const int64_t count = std::min(kTile, n - i), at = first + i;
      if (a.needs_mask())
        dropper.drop(dy + at, gradient, count, at, V(a.mask.rate.scale));
      else
        scale_span(dy + at, gradient, count, V(a.mask.rate.scale));
      fill_with_kept(at, count, channels.from(i), kept);
      derivative_of_tile(gradient, kept, gradient, count, a.act);
      scale_span(gradient, first_result + at, count, V(1));
    }
  }

  // What the activation's derivative is computed from: the output or, where it was not saved, z or the result at z.
  template <class Channels>
  void fill_with_kept(int64_t at, int64_t count, Channels channels, V* kept) const {
    if (output) return scale_span(output + at, kept, count, V(1));
    normalize_unrounded(x + at, residual + at, kept, RowSpan{count, 0, 0}, channels);
    if (a.act.keeps_result()) activate(kept, kept, count, a.act);
  }
};

// The loops of both sweeps, for one or many channels.
template <class T, class Channels>
struct BackwardSpans {
  const Pass<T>& pass;
  bool writes_dz = pass.writes_dz_in_sums();
  AddGradientsSpan<T, Channels> add_gradients = add_gradients_span<T, Channels>(pass.act);
  AddResidualGradientsSpan<T, Channels> add_residual_gradients;
  DifferentiateSpan<T, Channels> differentiate = differentiate_span<T, Channels>(pass.act);

  explicit BackwardSpans(const Pass<T>& p, bool streams_dz = false)
      : pass(p), add_residual_gradients(add_residual_gradients_span<T, Channels>(pass.a.act, streams_dz)) {}

  // Adds the runs that begin at an index.
  void add(int64_t i, Runs runs, Channels channels, Lanes<Channels>& sums) const {
    if (!pass.needs_sums) return;
    if (!writes_dz) return add_gradients(pass.start + i, pass.x + i, runs, channels, pass.act, sums);
    add_residual_gradients(pass.dy + i, pass.output + i, pass.x + i, pass.first_result + i, runs, channels, pass.a.act,
                           sums);
  }

  void write_dx(T* to, int64_t i, RowSpan span, Channels channels) const {
    differentiate(pass.start + i, pass.x + i, to, span, channels, OpMath<T>(pass.scale_of_start), pass.act);
  }
};

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

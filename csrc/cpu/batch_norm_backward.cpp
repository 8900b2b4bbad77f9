// batch_norm_act backward: one sweep for the two sums a channel, one for dx. With a residual the first sweep also
// writes dz, the residual's gradient, and both go on from dz as it was rounded. After dropout they start from dy
// masked; its scale multiplies the sums, and dx in its loop.
#include "batch_norm_dropout.h"
#include "batch_norm_planes.h"
#include "batch_norm_rows.h"

namespace fusedtricks::cpu {
namespace {

struct Sums {
  double dz = 0, dz_xhat = 0;
};

// The mask of the forward's dropout; any where there was none.
Mask recorded_mask(const BatchNormBackward& a) {
  constexpr int64_t none[] = {0, 0};
  return {a.drops() ? a.rng_state : none, a.rate};
}

template <class From, class To>
void scale_span(const From* x, To* y, int64_t n, Compute<To> scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = store<To>(load(x[i]) * scale);
}

// What the sweeps have to do; `dz` is what they start from, and `act` what leads from there to z: dy and the
// activation, or dz itself and the identity.
template <class T>
struct Pass {
  using V = Compute<T>;

  const BatchNormBackward& a;
  const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy);
  const T *output = static_cast<const T*>(a.output), *residual = static_cast<const T*>(a.residual);
  T *dx = static_cast<T*>(a.dx), *dz_out = static_cast<T*>(a.dz);
  const T* dz = a.after_residual() ? dz_out : dy;
  const Activation act = a.after_residual() ? Activation{0, {}} : a.act;
  const bool needs_sums = a.needs_sums();
  const double scale_of_dz = a.scale_of_dz();
  const Mask mask = recorded_mask(a);
  DerivativeSpan<T, T> derivative_of_output = derivative_span<T, T>(a.act);
  DerivativeSpan<T, V> derivative_at_z = derivative_span<T, V>(a.act);
  DerivativeSpan<V, V> derivative_of_tile = derivative_span<V, V>(a.act);
  ActivationSpan<V> activate = activation_span<V>(a.act);
  Coefficients<V> coefficients{a.layout.channels};

  explicit Pass(const BatchNormBackward& arguments) : a(arguments) {
    for (int64_t c = 0; c < a.layout.channels; ++c) {
      coefficients.set_forward(c, a.mean[c], a.rstd[c], a.weight.get_or(c, 1), a.bias.get_or(c, 0));
    }
  }

  bool sweeps_first() const { return needs_sums || a.after_residual(); }

  void finish_channel(int64_t c, Sums s) {
    s.dz *= scale_of_dz;
    s.dz_xhat *= scale_of_dz;
    const double dweight = coefficients.set_backward(c, s.dz, s.dz_xhat, a.mean[c], a.rstd[c], a.weight.get_or(c, 1),
                                                     double(a.layout.per_channel()), a.training);
    if (a.dweight) a.dweight.set(c, dweight);
    if (a.dbias) a.dbias.set(c, s.dz);
  }

  // Whether dz is written while it is summed; else, with a residual, write_dz comes first.
  bool writes_dz_in_sums() const { return output && needs_sums && !a.drops(); }
  bool writes_dz_before_sums() const { return a.after_residual() && !writes_dz_in_sums(); }
  // Whether both sweeps mask dy as they read it.
  bool masks_dy() const { return a.drops() && !a.after_residual(); }

  // Adds the runs that begin at an index.
  template <class Channels>
  void add(const BackwardSpans<T, Channels>& spans, int64_t first, Runs runs, Channels channels,
           Lanes<Channels>& sums) const {
    if (!needs_sums) return;
    if (!writes_dz_in_sums()) return spans.add_gradients(dz + first, x + first, runs, channels, act, sums);
    spans.add_residual_gradients(dy + first, output + first, x + first, dz_out + first, runs, channels, a.act, sums);
  }

  // Writes dz for n neighbouring elements; there is a residual.
  template <class Channels>
  void write_dz(int64_t first, int64_t n, Channels channels) const {
    if (output) return derivative_of_output(dy + first, output + first, dz_out + first, n, a.act);
    for (int64_t i = 0; i < n; i += kTile) {
      V z[kTile];
      const int64_t count = std::min(kTile, n - i), at = first + i;
      normalize<T, V, Channels, Identity<V>, true>(x + at, residual + at, z, RowSpan{count, 0, 0}, channels.from(i),
                                                   act);
      derivative_at_z(dy + at, z, dz_out + at, count, a.act);
    }
  }

  // The same behind dropout. The output tells what was kept as well; where there is none, the activation is computed
  // once more.
  template <class Channels, class Dropper>
  void write_dropped_dz(int64_t first, int64_t n, Channels channels, Dropper& dropper) const {
    for (int64_t i = 0; i < n; i += kTile) {
      V gradient[kTile], kept[kTile];
      const int64_t count = std::min(kTile, n - i), at = first + i;
      if (a.needs_mask())
        dropper.drop(dy + at, gradient, count, at, V(a.rate.scale));
      else
        scale_span(dy + at, gradient, count, V(a.rate.scale));
      if (output) {
        scale_span(output + at, kept, count, V(1));
      } else {
        normalize<T, V, Channels, Identity<V>, true>(x + at, residual + at, kept, RowSpan{count, 0, 0},
                                                     channels.from(i), act);
        if (a.act.keeps_result()) activate(kept, kept, count, a.act);
      }
      derivative_of_tile(gradient, kept, gradient, count, a.act);
      scale_span(gradient, dz_out + at, count, V(1));
    }
  }

  // dx of a span whose first element is the one of that index.
  template <class Channels, class Dropper>
  void differentiate(const BackwardSpans<T, Channels>& spans, T* to, int64_t i, RowSpan span, Channels channels,
                     Dropper& dropper) const {
    if (masks_dy())
      differentiate_dropped(spans, dy, x, to, i, span, channels, act, dropper, scale_of_dz);
    else
      spans.differentiate(dz + i, x + i, to, span, {span.in_stride, V(1)}, channels, act);
  }
};

// Adds up a task's chunks with dy masked. Some samples at a time: neighbouring planes of a sample have their words in
// one piece.
template <class T>
void masked_plane_sums(const PlanesPlan& plan, const Pass<T>& pass, int64_t task, Sums* sums) {
  using Channel = OneChannel<Compute<T>>;
  constexpr int64_t most = 2 * kTile;
  static_assert(most >= kChunk);
  const BackwardSpans<T, Channel> spans(pass.act, pass.a.act);
  const int64_t c0 = plan.first_channel(task), channels = plan.channel_count(task);
  OrderedDropper dropper(pass.mask);
  alignas(kCacheLine) T dy[most], x[most];
  for (int64_t i = plan.first_chunk(task); i < plan.last_chunk(task); ++i) {
    const Chunk k = plan.chunk(i);
    const int64_t run = k.s1 - k.s0, row = channels * run, samples = std::max<int64_t>(1, most / row);
    for (int64_t n = k.n0, count; n < k.n1; n += count) {
      count = std::min(samples, k.n1 - n);
      for (int64_t j = 0; j < count; ++j) {
        const int64_t at = plan.index(n + j, c0, k.s0);
        dropper.drop(pass.dy + at, dy + j * row, row, at, Compute<T>(1));
        std::copy_n(pass.x + at, row, x + j * row);
      }
      for (int64_t c = 0; c < channels; ++c) {
        Lanes<Channel> lanes;
        spans.add_gradients(dy + c * run, x + c * run, Runs{count, row, run}, pass.coefficients.one(c0 + c), pass.act,
                            lanes);
        sums[c].dz += lanes.total_sum();
        sums[c].dz_xhat += lanes.total_product();
      }
    }
  }
}

// Writes dz behind dropout for a task's channels in a chunk.
template <class T>
void write_dropped_planes(const PlanesPlan& plan, const Pass<T>& pass, int64_t task, const Chunk& k) {
  const int64_t c0 = plan.first_channel(task);
  OrderedDropper dropper(pass.mask);
  for (int64_t n = k.n0; n < k.n1; ++n) {
    for (int64_t c = c0; c < c0 + plan.channel_count(task); ++c) {
      pass.write_dropped_dz(plan.index(n, c, k.s0), k.s1 - k.s0, pass.coefficients.one(c), dropper);
    }
  }
}

// Adds up a task's chunks.
template <class T>
void plane_sums(const PlanesPlan& plan, const Pass<T>& pass, int64_t task, Sums* sums) {
  using Channel = OneChannel<Compute<T>>;
  const BackwardSpans<T, Channel> spans(pass.act, pass.a.act);
  const int64_t c0 = plan.first_channel(task);
  for (int64_t i = plan.first_chunk(task); i < plan.last_chunk(task); ++i) {
    const Chunk k = plan.chunk(i);
    const bool is_written = pass.a.drops();
    if (is_written) write_dropped_planes(plan, pass, task, k);
    for (int64_t c = 0; c < plan.channel_count(task); ++c) {
      const Channel channel = pass.coefficients.one(c0 + c);
      for (int64_t n = k.n0; pass.writes_dz_before_sums() && !is_written && n < k.n1; ++n) {
        pass.write_dz(plan.index(n, c0 + c, k.s0), k.s1 - k.s0, channel);
      }
      Lanes<Channel> lanes;
      pass.add(spans, plan.index(k.n0, c0 + c, k.s0), plan.runs(k), channel, lanes);
      sums[c].dz += lanes.total_sum();
      sums[c].dz_xhat += lanes.total_product();
    }
  }
}

template <class T>
void backward_planes(Pass<T>& pass) {
  using V = Compute<T>;
  const PlanesPlan plan(pass.a.layout);
  const BackwardSpans<T, OneChannel<V>> one(pass.act, pass.a.act);
  const BackwardSpans<T, ManyChannels<V>> many(pass.act, pass.a.act);
  const bool stream = worth_streaming(plan.layout.per_channel() * plan.layout.channels, sizeof(T));
  std::vector<Sums> partials(plan.slots());

  for_planes(
      plan,
      [&](int64_t task) {
        if (!pass.sweeps_first()) return;
        if (pass.masks_dy())
          masked_plane_sums(plan, pass, task, &partials[plan.slot(task)]);
        else
          plane_sums(plan, pass, task, &partials[plan.slot(task)]);
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
        OrderedDropper dropper(pass.mask);
        const auto with = [&](const auto& spans) {
          return [&](T* to, int64_t i, RowSpan span, auto channels) {
            pass.differentiate(spans, to, i, span, channels, dropper);
          };
        };
        write_planes(plan, pass.dx, task, stream, pass.coefficients, {pass.x, pass.dz}, with(one), with(many));
      });
}

template <class Lanes>
void add_to_partials(const Lanes& lanes, int width, int64_t chunk, int64_t channel, RowPartials& partials) {
  double *sum = partials.first(chunk) + channel, *product = partials.second(chunk) + channel;
  for (int j = 0; j < width; ++j) sum[j] += lanes.sum[j];
  for (int j = 0; j < width; ++j) product[j] += lanes.product[j];
}

constexpr int64_t kMaskedTile = 8192;  // elements

// Adds up a part of a block with dy masked.
template <class T>
void masked_row_sums(const RowsPlan& plan, const Pass<T>& pass, const Block& part, RowsDropper& dropper,
                     const BackwardSpans<T, ManyChannels<Compute<T>>>& spans, RowPartials& partials) {
  using Channels = ManyChannels<Compute<T>>;
  alignas(kCacheLine) T dy[kMaskedTile], x[kMaskedTile];
  const int64_t columns = part.c1 - part.c0, rows = part.r1 - part.r0;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = (part.r0 + r) * plan.channels + part.c0;
    dropper.drop(pass.dy + at, dy + r * columns, columns, at, Compute<T>(1));
    std::copy_n(pass.x + at, columns, x + r * columns);
  }
  for (int64_t c = 0; c < columns; c += Channels::lanes) {
    const int width = int(std::min<int64_t>(Channels::lanes, columns - c));
    Lanes<Channels> lanes;
    spans.add_gradients(dy + c, x + c, Runs{rows, columns, width}, pass.coefficients.many().from(part.c0 + c), pass.act,
                        lanes);
    add_to_partials(lanes, width, part.chunk, part.c0 + c, partials);
  }
}

template <class T>
void row_sums(const RowsPlan& plan, const Pass<T>& pass, const Block& b, RowPartials& partials) {
  using Channels = ManyChannels<Compute<T>>;
  const Channels channels = pass.coefficients.many();
  const bool streams_dz =
      plan.streams && is_vector_aligned(pass.dz_out) && plan.channels * sizeof(T) % kVectorSize == 0;
  const BackwardSpans<T, Channels> spans(pass.act, pass.a.act, streams_dz);
  touch_block(plan, pass.dy, b);
  if (pass.output) touch_block(plan, pass.output, b);
  if (pass.residual) touch_block(plan, pass.residual, b);
  touch_block(plan, pass.x, b);
  RowsDropper dropper(pass.mask, pass.a.layout);
  if (pass.masks_dy()) {
    const int64_t columns = pass.a.layout.positions == 1 ? std::min(kSegment, b.c1 - b.c0) : Channels::lanes;
    return dropper.for_parts(b, kMaskedTile / columns, columns,
                             [&](const Block& part) { masked_row_sums(plan, pass, part, dropper, spans, partials); });
  }
  if (pass.a.drops()) {
    dropper.for_parts(b, b.r1 - b.r0, kSegment, [&](const Block& part) {
      for (int64_t r = part.r0; r < part.r1; ++r) {
        pass.write_dropped_dz(r * plan.channels + part.c0, part.c1 - part.c0, channels.from(part.c0), dropper);
      }
    });
  }
  for (int64_t r = b.r0; pass.writes_dz_before_sums() && !pass.a.drops() && r < b.r1; ++r) {
    pass.write_dz(r * plan.channels + b.c0, b.c1 - b.c0, channels.from(b.c0));
  }
  for (int64_t c = b.c0; pass.needs_sums && c < b.c1; c += Channels::lanes) {
    const int width = int(std::min<int64_t>(Channels::lanes, b.c1 - c));
    Lanes<Channels> lanes;
    pass.add(spans, b.r0 * plan.channels + c, Runs{b.r1 - b.r0, plan.channels, width}, channels.from(c), lanes);
    add_to_partials(lanes, width, b.chunk, c, partials);
  }
  if (plan.streams) stream_fence();
}

template <class T>
void backward_rows(Pass<T>& pass) {
  using Channels = ManyChannels<Compute<T>>;
  const RowsPlan plan(pass.a.layout, sizeof(T));
  const BackwardSpans<T, Channels> spans(pass.act, pass.a.act);
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
    touch_block(plan, pass.dz, b);
    RowsDropper dropper(pass.mask, pass.a.layout);
    const auto write = [&](const Block& part) {
      write_block(plan, pass.dx, part, [&](T* to, int64_t i, int64_t c, RowSpan span) {
        pass.differentiate(spans, to, i, span, pass.coefficients.many().from(c), dropper);
      });
    };
    if (pass.masks_dy())
      dropper.for_parts(b, b.r1 - b.r0, kSegment, write);
    else
      write(b);
  });
}

}  // namespace
}  // namespace fusedtricks::cpu

int64_t fusedtricks::backend::batch_norm_backward_workspace(const BatchNormBackward&) { return 0; }

void fusedtricks::backend::batch_norm_backward(const BatchNormBackward& a) {
  visit_dtype(a.dtype, [&](auto type) {
    cpu::Pass<typename decltype(type)::type> pass(a);
    if (a.layout.rows)
      cpu::backward_rows(pass);
    else
      cpu::backward_planes(pass);
  });
}

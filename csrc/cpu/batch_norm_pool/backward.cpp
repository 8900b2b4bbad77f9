// batch_norm_act_max_pool2d backward: one sweep over the outputs for the two sums a channel, with x at the maxima
// alone; one over x for dx, in bands of rows to which the gradients of the outputs are scattered before.
#include "cpu/batch_norm/loops.h"
#include "cpu/batch_norm_pool/pooled_image.h"

namespace fusedtricks::cpu {
namespace {

constexpr int64_t kBandElements = 32 << 10;
constexpr int64_t kTileRows = 32;  // outputs whose maxima are gathered together

// The loop that writes dx, from gradients in the compute type.
template <class T, class Channels>
DifferentiateSpan<T, Channels, OpMath<T>> unpooled_span(const Activation& activation) {
  using V = OpMath<T>;
  if constexpr (std::is_same_v<T, V>) {
    return differentiate_span<T, Channels>(activation);
  } else {
    DifferentiateSpan<T, Channels, V> span = nullptr;
    activation.visit<V>([&](auto act) { span = differentiate<T, Channels, decltype(act), V>; });
    return span;
  }
}

template <class T>
struct PoolPass {
  using V = OpMath<T>;

  const BatchNormPoolBackward& a;
  const T *x = static_cast<const T*>(a.norm.x), *dy = static_cast<const T*>(a.dy);
  T* dx = static_cast<T*>(a.norm.dx);
  PooledImage image{a.pool, a.norm.layout.channels_last ? a.norm.layout.channels : 1};
  PlaceOffsets places{a.pool, image.inner};
  bool stream = worth_streaming(a.norm.layout.per_channel() * a.norm.layout.channels, sizeof(T));
  Coefficients<V> coefficients{a.norm.layout.channels};

  explicit PoolPass(const BatchNormPoolBackward& arguments) : a(arguments) {
    const BatchNormBackward& n = a.norm;
    for (int64_t c = 0; c < n.layout.channels; ++c) {
      coefficients.set_forward(c, n.mean[c], n.rstd[c], n.weight.get_or(c, 1), n.bias.get_or(c, 0));
    }
  }

  void finish_channel(int64_t c, double sum_dz, double sum_dz_xhat) {
    const BatchNormBackward& n = a.norm;
    const double dweight = coefficients.set_backward(c, sum_dz, sum_dz_xhat, n.mean[c], n.rstd[c],
                                                     n.weight.get_or(c, 1), double(n.layout.per_channel()), n.training);
    if (n.dweight) n.dweight.set(c, dweight);
    if (n.dbias) n.dbias.set(c, sum_dz);
  }

  // From an image to the first element of a window, inside the image or not.
  int64_t window(int64_t row_output, int64_t column_output) const {
    return a.pool.height.start(row_output) * image.row() + a.pool.width.start(column_output) * image.inner;
  }
};

template <class T>
void widen(const T* from, int64_t n, OpMath<T>* to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}

// Adds up the outputs [begin, end) of a plane, some rows at a time.
template <class T>
class PlaneSums {
  using V = OpMath<T>;
  using Channel = OneChannel<V>;

 public:
  explicit PlaneSums(const PoolPass<T>& pass)
      : pass_(pass),
        add_gradients_(add_gradients_span<V, Channel>(pass.a.norm.act)),
        rows_(std::max<int64_t>(1, kChunk / pass.image.output_row())),
        maxima_(rows_ * pass.image.output_row()),
        gradients_(maxima_.size()) {}

  void add(int64_t plane, int64_t begin, int64_t end, const Channel& channel, double& dz, double& dz_xhat) {
    for (int64_t o = begin; o < end; o += rows_) {
      Lanes<Channel> lanes;
      add_rows(plane, o, std::min(rows_, end - o), channel, lanes);
      dz += lanes.total_sum();
      dz_xhat += lanes.total_product();
    }
  }

 private:
  const PoolPass<T>& pass_;
  AddGradientsSpan<V, Channel> add_gradients_;
  int64_t rows_;
  std::vector<V> maxima_, gradients_;

  void add_rows(int64_t plane, int64_t first_row, int64_t count, const Channel& channel, Lanes<Channel>& lanes) {
    const PooledImage& image = pass_.image;
    const T* x = pass_.x + plane * image.size();
    const int64_t width = image.output_row(), first = plane * image.output_size() + first_row * width;
    for (int64_t o = 0; o < count; ++o) {
      gather_maxima(x + pass_.window(first_row + o, 0), pass_.a.argmax + first + o * width, pass_.places, width,
                    image.pool.width.stride, &maxima_[o * width]);
    }
    widen(pass_.dy + first, count * width, gradients_.data());
    add_gradients_(gradients_.data(), maxima_.data(), Runs{1, 0, count * width}, channel, pass_.a.norm.act, lanes);
  }
};

// Adds up a block of outputs that lie in rows.
template <class T>
void add_row_sums(const PoolPass<T>& pass, const ChannelsLastPlan& plan, const Block& b, RowPartials& partials) {
  using V = OpMath<T>;
  using Channels = ManyChannels<V>;
  constexpr int lanes = Channels::lanes;
  const auto add_gradients = add_gradients_span<V, Channels>(pass.a.norm.act);
  const MaxPool& pool = pass.a.pool;
  std::vector<int64_t> windows(b.r1 - b.r0);
  for (int64_t r = b.r0; r < b.r1; ++r) {
    const int64_t sample = r / pool.outputs(), output = r % pool.outputs();
    windows[r - b.r0] =
        sample * pass.image.size() + pass.window(output / pool.width.outputs, output % pool.width.outputs);
  }
  for (int64_t c = b.c0; c < b.c1; c += lanes) {
    const int width = int(std::min<int64_t>(lanes, b.c1 - c));
    Lanes<Channels> sums;
    for (int64_t r = b.r0; r < b.r1; r += kTileRows) {
      alignas(kCacheLine) V maxima[kTileRows * lanes], gradients[kTileRows * lanes];
      const int64_t count = std::min(kTileRows, b.r1 - r);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t first = (r + i) * plan.channels + c;
        gather_maxima(pass.x + windows[r - b.r0 + i] + c, pass.a.argmax + first, pass.places, width, 1,
                      maxima + i * lanes);
        widen(pass.dy + first, width, gradients + i * lanes);
      }
      add_gradients(gradients, maxima, Runs{count, lanes, width}, pass.coefficients.many().from(c), pass.a.norm.act,
                    sums);
    }
    double *sum = partials.first(b.chunk) + c, *product = partials.second(b.chunk) + c;
    for (int j = 0; j < width; ++j) sum[j] += sums.sum[j];
    for (int j = 0; j < width; ++j) product[j] += sums.product[j];
  }
}

// Writes dx of one image after the other.
template <class T>
class Unpooling {
  using V = OpMath<T>;

 public:
  explicit Unpooling(const PoolPass<T>& pass)
      : pass_(pass),
        one_(unpooled_span<T, OneChannel<V>>(pass.a.norm.act)),
        many_(unpooled_span<T, ManyChannels<V>>(pass.a.norm.act)),
        rows_(std::clamp<int64_t>(kBandElements / pass.image.row(), 1, pass.image.pool.height.size)),
        reach_(std::min(pass.image.pool.height.extent() - 1, pass.image.pool.height.size)),
        band_((2 * reach_ + rows_) * pass.image.row()) {}

  // Rows [begin, end) of image number `image`.
  template <class Channels>
  void differentiate(int64_t image, int64_t begin, int64_t end, const Channels& channels) {
    const PoolAxis& rows = pass_.image.pool.height;
    std::fill(band_.begin(), band_.end(), V(0));
    int64_t next = rows.first_reaching(begin);
    for (int64_t row = begin; row < end; row += rows_) {
      const int64_t last = std::min(end, row + rows_);
      for (; next < rows.outputs && rows.start(next) < last; ++next) scatter(image, next, row);
      write(image * pass_.image.size() + row * pass_.image.row(), last - row, channels);
      if (last < end) advance(last - row);
    }
    if (pass_.stream) stream_fence();
  }

 private:
  const PoolPass<T>& pass_;
  DifferentiateSpan<T, OneChannel<V>, V> one_;
  DifferentiateSpan<T, ManyChannels<V>, V> many_;
  int64_t rows_, reach_;  // reach: rows of the band before those that are written next, and behind them
  AlignedVector<V> band_;

  V* first() { return band_.data() + reach_ * pass_.image.row(); }

  // A row of outputs into the band whose written rows begin with `row`.
  void scatter(int64_t image, int64_t output, int64_t row) {
    const PooledImage& shape = pass_.image;
    const int64_t from = image * shape.output_size() + output * shape.output_row();
    V* to = first() + pass_.window(output, 0) - row * shape.row();
    const T* dy = pass_.dy + from;
    const uint8_t* argmax = pass_.a.argmax + from;
    const int64_t stride = shape.pool.width.stride;
    if (shape.is_plane()) return scatter_gradients(dy, argmax, pass_.places, shape.output_row(), stride, to);
    for (int64_t i = 0; i < shape.pool.width.outputs; ++i) {
      const int64_t at = i * shape.inner;
      scatter_gradients(dy + at, argmax + at, pass_.places, shape.inner, 1, to + i * stride * shape.inner);
    }
  }

  void write(int64_t at, int64_t count, const OneChannel<V>& channel) {
    emit(pass_.dx + at, count * pass_.image.row(), pass_.stream, [&](T* to, int64_t i, int64_t n) {
      one_(first() + i, pass_.x + at + i, to, RowSpan{n, 0, 0}, channel, V(1), pass_.a.norm.act);
    });
  }

  void write(int64_t at, int64_t count, const ManyChannels<V>& channels) {
    const int64_t C = pass_.image.inner, positions = count * pass_.image.pool.width.size;
    for (int64_t c = 0; c < C; c += kSegment) {
      write_rows(pass_.dx + at + c, positions, C, std::min(kSegment, C - c), pass_.stream,
                 [&](T* to, int64_t i, RowSpan span) {
                   many_(first() + c + i, pass_.x + at + c + i, to, span, channels.from(c), V(1), pass_.a.norm.act);
                 });
    }
  }

  // Moves the rows behind the written ones to their place.
  void advance(int64_t count) {
    const int64_t row = pass_.image.row();
    std::copy(first() + count * row, first() + (count + reach_) * row, first());
    std::fill(first() + reach_ * row, band_.end(), V(0));
  }
};

struct PoolSums {
  double dz = 0, dz_xhat = 0;
};

template <class T>
void backward_planes(PoolPass<T>& pass) {
  const Layout& layout = pass.a.norm.layout;
  const PlanesPlan plan(layout);
  std::vector<PoolSums> partials(plan.slots());
  const auto for_planes_of = [&](int64_t task, int64_t lines, bool reversed, const auto& f) {
    const int64_t c0 = plan.first_channel(task), count = plan.channel_count(task);
    for_lines(layout.samples, lines, task % plan.parts, plan.parts, reversed,
              [&](int64_t sample, int64_t begin, int64_t end) {
                for (int64_t c = c0; c < c0 + count; ++c) f(sample * layout.channels + c, begin, end, c, c - c0);
              });
  };
  for_planes(
      plan,
      [&](int64_t task) {
        if (!pass.a.norm.needs_sums()) return;
        PlaneSums<T> sums(pass);
        for_planes_of(task, pass.a.pool.height.outputs, false,
                      [&](int64_t plane, int64_t begin, int64_t end, int64_t c, int64_t i) {
                        PoolSums& s = partials[plan.slot(task) + i];
                        sums.add(plane, begin, end, pass.coefficients.one(c), s.dz, s.dz_xhat);
                      });
      },
      [&](int64_t c) {
        PoolSums s;
        for (int64_t part = 0; part < plan.parts; ++part) {
          const PoolSums& p = partials[plan.slot_of(c, part)];
          s.dz += p.dz;
          s.dz_xhat += p.dz_xhat;
        }
        pass.finish_channel(c, s.dz, s.dz_xhat);
      },
      [&](int64_t task) {
        if (!pass.dx) return;
        Unpooling<T> unpooling(pass);
        for_planes_of(task, pass.a.pool.height.size, true,
                      [&](int64_t plane, int64_t begin, int64_t end, int64_t c, int64_t) {
                        unpooling.differentiate(plane, begin, end, pass.coefficients.one(c));
                      });
      });
}

template <class T>
void backward_channels_last(PoolPass<T>& pass) {
  const Layout& layout = pass.a.norm.layout;
  const ChannelsLastPlan plan(pass.a.outputs(), sizeof(T));
  RowPartials partials(plan);
  if (pass.a.norm.needs_sums()) {
    for_blocks(plan, false, [&](const Block& b) { add_row_sums(pass, plan, b, partials); });
  }
  for_channels(plan, [&](int64_t c) {
    PoolSums s;
    for (int64_t i = 0; i < plan.row_chunks; ++i) s.dz += partials.first(i)[c], s.dz_xhat += partials.second(i)[c];
    pass.finish_channel(c, s.dz, s.dz_xhat);
  });
  if (!pass.dx) return;
  const int64_t lines = pass.a.pool.height.size, parts = row_parts(layout, lines, sizeof(T));
  parallel_tasks_reversed(parts, [&](int64_t part) {
    Unpooling<T> unpooling(pass);
    for_lines(layout.samples, lines, part, parts, true, [&](int64_t sample, int64_t begin, int64_t end) {
      unpooling.differentiate(sample, begin, end, pass.coefficients.many());
    });
  });
}

int64_t batch_norm_pool_backward_workspace(const BatchNormPoolBackward&) { return 0; }

void batch_norm_pool_backward(const BatchNormPoolBackward& a) {
  visit_dtype(a.norm.dtype, [&](auto type) {
    PoolPass<typename decltype(type)::type> pass(a);
    if (a.norm.layout.channels_last)
      backward_channels_last(pass);
    else
      backward_planes(pass);
  });
}

const Provided provided[] = {
    {kernels::batch_norm_pool_backward_workspace, batch_norm_pool_backward_workspace},
    {kernels::batch_norm_pool_backward, batch_norm_pool_backward},
};

}  // namespace
}  // namespace fusedtricks::cpu

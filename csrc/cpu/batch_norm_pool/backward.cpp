// batch_norm_act_max_pool2d backward: one sweep over the outputs for the two sums of each channel, which reads x at the
// maxima only; and one over x for dx. It works on bands of rows, into which the gradients of the outputs are scattered
// first.
#include "cpu/batch_norm_pool/unpooling.h"

namespace fusedtricks::cpu {
namespace {

constexpr int64_t kTileRows = 32;  // outputs whose maxima are gathered at a time

template <class T>
void widen(const T* from, int64_t n, OpMath<T>* to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}

// Adds up the gradients of rows [begin, end) of the outputs of planes, a few rows at a time.
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

// Adds up a block of the outputs of a channels_last tensor.
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

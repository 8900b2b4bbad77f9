// The second sweep of batch_norm_act_max_pool2d's backward.
#pragma once

#include "cpu/batch_norm/loops.h"
#include "cpu/batch_norm_pool/pooled_image.h"

namespace fusedtricks::cpu {

constexpr int64_t kBandElements = 32 << 10;

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

  // How far the first element of a window is from that of the image. It may lie outside.
  int64_t window(int64_t row_output, int64_t column_output) const {
    return a.pool.height.start(row_output) * image.row() + a.pool.width.start(column_output) * image.inner;
  }
};

// Writes dx, one image after the other. The band holds the gradients at the maxima of a few rows of x, and of `reach_`
// rows before and after them.
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

  // Writes rows [begin, end) of an image.
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
  int64_t rows_, reach_;  // rows that are written at a time; how many rows a window may reach beyond them
  AlignedVector<V> band_;

  V* first() { return band_.data() + reach_ * pass_.image.row(); }

  // Adds a row of outputs to the band. `row` is the first of the rows to be written.
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

  // Moves the band on by `count` rows.
  void advance(int64_t count) {
    const int64_t row = pass_.image.row();
    std::copy(first() + count * row, first() + (count + reach_) * row, first());
    std::fill(first() + reach_ * row, band_.end(), V(0));
  }
};

}  // namespace fusedtricks::cpu

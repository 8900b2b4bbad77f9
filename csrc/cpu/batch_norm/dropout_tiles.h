// Dropout inside the sweeps of batch_norm_act. The loops of loops.h know nothing of it: their results are masked in
// place or in a tile in L1.
#pragma once

#include "cpu/activation_spans.h"
#include "cpu/batch_norm/channels_last.h"
#include "cpu/dropout/row_mask.h"

namespace fusedtricks::cpu {

// y = dropout(act(z)) over a span. Where T is the compute type y is masked in place. Otherwise z, the activation and
// the mask go through a tile in the compute type, so that a kept value is rounded once, after it was scaled.
template <class T, class Channels>
struct DropSpans {
  using V = OpMath<T>;
  static constexpr bool in_place = std::is_same_v<T, V>;

  const Activation& act;
  const T *x, *residual;
  const V scale;
  NormalizeSpan<T, Channels> normalize;
  ActivationSpan<V> activate = in_place ? nullptr : activation_span<V>(act);

  // Writes a span whose first element has that index. `to` is y or a tile.
  template <class Dropper>
  void write(T* to, int64_t index, RowSpan span, Channels channels, Dropper& dropper) const {
    const int rows = Channels::tile_rows > 1 && span.in_stride ? Channels::tile_rows : 1;
    if constexpr (in_place) {
      normalize(x + index, residual_at(index), to, span, channels, act);
      for (int r = 0; r < rows; ++r) {
        T* row = to + r * span.out_stride;
        dropper.drop(row, row, span.n, index + r * span.in_stride, scale);
      }
      return;
    }
    alignas(kCacheLine) V tile[Channels::tile_rows * kSegment];
    for (int64_t at = 0; at < span.n; at += kSegment) {
      const int64_t n = std::min(kSegment, span.n - at), first = index + at;
      normalize_unrounded(x + first, residual_at(first), tile, RowSpan{n, span.in_stride, rows > 1 ? kSegment : 0},
                          channels.from(at));
      for (int r = 0; r < rows; ++r) {
        V* row = tile + r * kSegment;
        activate(row, row, n, act);
        dropper.drop(row, to + at + r * span.out_stride, n, first + r * span.in_stride, scale);
      }
    }
  }

 private:
  const T* residual_at(int64_t i) const { return residual ? residual + i : nullptr; }
};

// Dropout of channels_last tensors. The elements of a row follow each other in logical order only where a row is a
// whole sample, in a (N, C) tensor.
class ChannelsLastDropper {
 public:
  // reads_ahead: whether drop() of a (N, C) tensor prefetches the next row.
  ChannelsLastDropper(const Mask& mask, const Layout& layout, bool reads_ahead)
      : mask_(mask), layout_(layout), ordered_(mask, reads_ahead ? layout.channels : 0) {}

  // Calls f(part) for the parts of a block. Within f, drop() serves the elements of that part.
  template <class F>
  void for_parts(const Block& b, const F& f) {
    const int64_t S = layout_.positions;
    for (int64_t r = b.r0, end; r < b.r1; r = end) {
      const int64_t s = r % S;
      end = S == 1 ? b.r1 : std::min(b.r1, r - s + std::min(S, (s / kPositions + 1) * kPositions));
      for (int64_t c = b.c0; c < b.c1; c += kSegment) {
        part_ = {b.chunk, r, end, c, std::min(b.c1, c + kSegment), b.done + r - b.r0};
        if (S > 1) {
          kept_.fill((r / S * layout_.channels + c) * S + s, int(part_.c1 - c), S, int(end - r), mask_);
        }
        f(part_);
      }
    }
  }

  template <class From, class To>
  void drop(const From* x, To* y, int64_t n, int64_t index, OpMath<To> scale) {
    if (layout_.positions == 1) return ordered_.drop(x, y, n, index, scale);
    const int64_t row = index / layout_.channels, column = index % layout_.channels;
    kept_.drop(x, y, n, kept_.bits + (column - part_.c0), int(row - part_.r0), scale);
  }

 private:
  static constexpr int64_t kPositions = KeptBits::positions;
  static_assert(KeptBits::channels == kSegment);

  const Mask mask_;
  const Layout layout_;
  Block part_{};
  OrderedDropper ordered_;
  KeptBits kept_;
};

}  // namespace fusedtricks::cpu

// Dropout inside the sweeps of batch_norm_act: what the forward writes passes a tile in L1, where it is masked. The
// loops of batch_norm_loops.h know nothing of it.
#pragma once

#include "cpu/batch_norm/channels_last.h"
#include "cpu/dropout/mask.h"

namespace fusedtricks::cpu {

// y = dropout(act(z)) of a span whose first element is the one of that index. Where T is the compute type, in place.
// Else in a tile of that type, so that what is kept is rounded once, after it was scaled; the activation is then a loop
// of its own.
template <class T, class Channels>
struct DropSpans {
  using V = OpMath<T>;
  static constexpr bool in_place = std::is_same_v<T, V>;

  void (*normalize)(const T*, const T*, V*, RowSpan, Channels, const Activation&);
  ActivationSpan<V> activate = nullptr;

  DropSpans(const Activation& act, bool has_residual) {
    if constexpr (in_place) {
      normalize = normalize_span<T, Channels>(act, has_residual);
    } else {
      normalize = has_residual ? cpu::normalize<T, V, Channels, Identity<V>, true>
                               : cpu::normalize<T, V, Channels, Identity<V>, false>;
      activate = activation_span<V>(act);
    }
  }

  template <class Dropper>
  void write(const T* x, const T* residual, T* to, int64_t index, RowSpan span, Channels channels,
             const Activation& act, Dropper& dropper, V scale) const {
    const int rows = Channels::tile_rows > 1 && span.in_stride ? Channels::tile_rows : 1;
    if constexpr (in_place) {
      normalize(x + index, residual ? residual + index : nullptr, to, span, channels, act);
      for (int r = 0; r < rows; ++r) {
        T* row = to + r * span.out_stride;
        dropper.drop(row, row, span.n, index + r * span.in_stride, scale);
      }
      return;
    }
    alignas(kCacheLine) V tile[Channels::tile_rows * kSegment];
    for (int64_t at = 0; at < span.n; at += kSegment) {
      const int64_t n = std::min(kSegment, span.n - at), first = index + at;
      normalize(x + first, residual ? residual + first : nullptr, tile,
                RowSpan{n, span.in_stride, rows > 1 ? kSegment : 0}, channels.from(at), act);
      for (int r = 0; r < rows; ++r) {
        V* row = tile + r * kSegment;
        activate(row, row, n, act);
        dropper.drop(row, to + at + r * span.out_stride, n, first + r * span.in_stride, scale);
      }
    }
  }
};

// The dropout of rows, whose elements are neighbours in logical order only where a row is a sample.
class ChannelsLastDropper {
 public:
  // reads_ahead: the next row is asked for.
  ChannelsLastDropper(const Mask& mask, const Layout& layout, bool reads_ahead)
      : mask_(mask), layout_(layout), ordered_(mask, reads_ahead ? layout.channels : 0) {}

  // Calls f(part) for the parts of a block. drop() serves the part of the call.
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

// Dropout inside the sweeps of batch_norm_act: what the forward writes passes a tile in L1, where it is masked. The
// loops of batch_norm_loops.h know nothing of it.
#pragma once

#include "batch_norm_rows.h"
#include "mask.h"

namespace fusedtricks::cpu {

constexpr int64_t kTileRows = 4;
constexpr int64_t kDropTile = kTileRows * kSegment;  // elements, in rows of kSegment

// act(z) in the compute type, so that what is kept of it is rounded once, after it was scaled. Where T is not that
// type, the activation is a loop of its own.
template <class T, class Channels>
struct TileSpans {
  using V = Compute<T>;

  void (*normalize)(const T*, const T*, V*, RowSpan, Channels, const Activation&);
  ActivationSpan<V> activate = nullptr;

  TileSpans(const Activation& act, bool has_residual) {
    if constexpr (std::is_same_v<T, V>) {
      normalize = normalize_span<T, Channels>(act, has_residual);
    } else {
      normalize = has_residual ? cpu::normalize<T, V, Channels, Identity<V>, true>
                               : cpu::normalize<T, V, Channels, Identity<V>, false>;
      activate = activation_span<V>(act);
    }
  }
};

// Calls f(at, span of kSegment columns or fewer, rows) for the parts of a span, whose tile has rows of kSegment.
template <class Channels, class F>
void for_tiles(const RowSpan& span, const F& f) {
  const int rows = Channels::rows > 1 && span.in_stride ? Channels::rows : 1;
  for (int64_t at = 0; at < span.n; at += kSegment) {
    f(at, RowSpan{std::min(kSegment, span.n - at), span.in_stride, rows > 1 ? kSegment : 0}, rows);
  }
}

// y = dropout(act(z)) of a span whose first element is the one of that index.
template <class T, class Channels, class Dropper>
void normalize_and_drop(const TileSpans<T, Channels>& spans, const T* x, const T* residual, T* to, int64_t index,
                        RowSpan span, Channels channels, const Activation& act, Dropper& dropper, double scale) {
  using V = Compute<T>;
  alignas(kCacheLine) V tile[kDropTile];
  for_tiles<Channels>(span, [&](int64_t at, RowSpan part, int rows) {
    const int64_t first = index + at;
    spans.normalize(x + first, residual ? residual + first : nullptr, tile, part, channels.from(at), act);
    for (int r = 0; r < rows; ++r) {
      V* row = tile + r * kSegment;
      if (spans.activate) spans.activate(row, row, part.n, act);
      dropper.drop(row, to + at + r * span.out_stride, part.n, first + r * span.in_stride, V(scale));
    }
  });
}

// The dropout of rows, whose elements are neighbours in logical order only where a row is a sample.
class RowsDropper {
 public:
  // reads_ahead: the next row is asked for.
  RowsDropper(const Mask& mask, const Layout& layout, bool reads_ahead)
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
  void drop(const From* x, To* y, int64_t n, int64_t index, Compute<To> scale) {
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

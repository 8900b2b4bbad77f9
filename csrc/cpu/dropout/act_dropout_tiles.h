// act_dropout works on tiles that stay in L1. Each goes through three short loops: add the bias, apply the activation,
// then drop and add the residual. So only the loop in the middle is compiled for every activation.
#pragma once

#include "cpu/activation_spans.h"
#include "cpu/dropout/bias.h"
#include "cpu/dropout/row_mask.h"

namespace fusedtricks::cpu {

// A tile has as many elements as one call computes random words for.
constexpr int64_t kMostOfTile = std::max<int64_t>(OrderedWords::count, kChannels);

template <class V>
struct Tile {
  alignas(kCacheLine) V value[kMostOfTile];
};

// z = x + bias for elements [i, i + n).
template <class T>
void load_biased(const T* x, const std::vector<OpMath<T>>& bias, const BiasPlaces& places, int64_t i, int64_t n,
                 OpMath<T>* z) {
  using V = OpMath<T>;
  const T* from = x + i;
  if (bias.empty()) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) z[j] = load(from[j]);
  } else if (places.inner == 1) {
    const V* b = bias.data() + i % places.count;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) z[j] = load(from[j]) + b[j];
  } else {
    for_runs(places, i, n, [&](int64_t number, int64_t first, int64_t count) {
      const V b = bias[number];
#pragma omp simd
      for (int64_t j = first; j < first + count; ++j) z[j] = load(from[j]) + b;
    });
  }
}

// y = dropout(z) [+ residual].
template <bool has_mask, bool has_residual, class T>
void store_dropped(const OpMath<T>* z, const T* residual, T* y, int64_t n, const uint32_t* word, const DropRate& rate) {
  using V = OpMath<T>;
  const uint32_t threshold = uint32_t(rate.threshold);
  const V scale = V(rate.scale);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    V value = z[j];
    if (has_mask) value = masked(value * scale, word[j], threshold);
    if (has_residual) value += load(residual[j]);
    y[j] = store<T>(value);
  }
}

template <class T>
using StoreDropped = void (*)(const OpMath<T>*, const T*, T*, int64_t, const uint32_t*, const DropRate&);

template <class T>
StoreDropped<T> store_dropped_for(bool has_mask, bool has_residual) {
  if (has_mask) return has_residual ? store_dropped<true, true, T> : store_dropped<true, false, T>;
  return has_residual ? store_dropped<false, true, T> : store_dropped<false, false, T>;
}

template <class T>
struct Forward {
  using V = OpMath<T>;

  const ActDropoutForward& a;
  const T* x = static_cast<const T*>(a.x);
  const T* residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  std::vector<V> bias = unrolled_bias<V>(a.bias, a.tail.places, kMostOfTile);
  ActivationSpan<V> activate = activation_span<V>(a.act);
  StoreDropped<T> finish = store_dropped_for<T>(!a.mask.rate.keeps_all(), residual);

  // Writes elements [i, i + n) of y to `to`.
  void write(int64_t i, int64_t n, const uint32_t* word, T* to) const {
    Tile<V> z;
    load_biased(x, bias, a.tail.places, i, n, z.value);
    if (!a.act.is_identity()) activate(z.value, z.value, n, a.act);
    finish(z.value, residual ? residual + i : nullptr, to, n, word, a.mask.rate);
  }
};

template <class T>
struct Backward {
  using V = OpMath<T>;

  const ActDropoutBackward& a;
  const T* dy = static_cast<const T*>(a.dy);
  const T* saved = static_cast<const T*>(a.saved);
  T* dx = static_cast<T*>(a.dx);
  std::vector<V> bias =
      a.kept == Kept::kInput ? unrolled_bias<V>(a.bias, a.tail.places, kMostOfTile) : std::vector<V>();
  ActivationSpan<V> activate = activation_span<V>(a.act);
  DerivativeSpan<V> multiply = derivative_span<V>(a.act);
  StoreDropped<V> drop = store_dropped_for<V>(/*has_mask=*/true, /*has_residual=*/false);

  // Gradients of elements [i, i + n) with respect to x + bias.
  void differentiate(int64_t i, int64_t n, const uint32_t* word, V* g) const {
    // Load first, then mask: a loop that does both waits for the words, and its loads take three times as long.
    multiply_by(dy, a.mask ? V(1) : V(a.mask.rate.scale), i, n, g);
    if (a.mask) drop(g, nullptr, g, n, word, a.mask.rate);
    if (a.kept == Kept::kNothing) return;
    Tile<V> k;
    if (a.kept == Kept::kResult) {
      multiply_by(saved, V(1 / a.mask.rate.scale), i, n, k.value);
    } else {
      load_biased(saved, bias, a.tail.places, i, n, k.value);
      if (a.act.keeps_result()) activate(k.value, k.value, n, a.act);
    }
    multiply(g, k.value, g, n, a.act);
  }

  void write(const V* g, int64_t n, T* to) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = store<T>(g[j]);
  }

 private:
  static void multiply_by(const T* from, V factor, int64_t i, int64_t n, V* to) {
    from += i;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = load(from[j]) * factor;
  }
};

}  // namespace fusedtricks::cpu

// The loops of max-pooling. They run over neighbouring outputs of a plane, whose elements are `stride` apart, or over
// the channels of one output.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/pool_window.h"
#include "core/scalar.h"
#include "cpu/simd/streams.h"

namespace fusedtricks::cpu {

// The places of a window that lie inside the image: the address of the first output's element there, and the number of
// the place.
template <class V>
struct Taps {
  const V* first[kMaxPlaces];
  uint8_t place[kMaxPlaces];
  int count = 0;

  void add(const V* element, int64_t place_) {
    first[count] = element;
    place[count++] = uint8_t(place_);
  }
};

// n outputs, computed one by one. Output i reads its taps `shift + i * stride` elements behind their addresses. As in
// PyTorch, the first of equal maxima counts, and if there is a NaN, the last NaN.
template <class T, class V>
void max_of_each(const Taps<V>& taps, int64_t shift, int64_t n, int64_t stride, T* y, uint8_t* argmax) {
  for (int64_t i = 0; i < n; ++i) {
    V most = taps.first[0][shift + i * stride];
    uint8_t place = taps.place[0];
    for (int t = 1; t < taps.count; ++t) {
      const V value = taps.first[t][shift + i * stride];
      if (value > most || value != value) most = value, place = taps.place[t];
    }
    y[i] = store<T>(most);
    argmax[i] = place;
  }
}

template <class V>
struct VectorOf {
  static constexpr int width = kVectorBytes / int(sizeof(V));
  typedef V Values __attribute__((vector_size(kVectorBytes)));
  typedef typename ExpTraits<V>::Int Places __attribute__((vector_size(kVectorBytes)));
};

template <class Vector, int... j>
FT_INLINE Vector even_elements(Vector low, Vector high, std::integer_sequence<int, j...>) {
  return __builtin_shufflevector(low, high, 2 * j...);
}

// A vector of elements that are `stride` apart, 1 or 2. With 2, one element beyond the last is read too.
template <int stride, class V>
FT_INLINE typename VectorOf<V>::Values read_strided(const V* from) {
  constexpr int width = VectorOf<V>::width;
  typename VectorOf<V>::Values low, high;
  std::memcpy(&low, from, sizeof(low));
  if (stride == 1) return low;
  std::memcpy(&high, from + width, sizeof(high));
  return even_elements(low, high, std::make_integer_sequence<int, width>());
}

// The same for some vectors of outputs, which go through the places together.
template <int stride, int vectors, class T, class V>
FT_INLINE void max_of_vectors(const Taps<V>& taps, int64_t shift, T* y, uint8_t* argmax) {
  using Vector = VectorOf<V>;
  using Int = typename ExpTraits<V>::Int;
  constexpr int width = Vector::width;
  typename Vector::Values most[vectors];
  typename Vector::Places place[vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    most[v] = read_strided<stride>(taps.first[0] + shift + v * width * stride);
    place[v] = typename Vector::Places{} + Int(taps.place[0]);
  }
  for (int t = 1; t < taps.count; ++t) {
    const V* from = taps.first[t] + shift;
    const auto here = typename Vector::Places{} + Int(taps.place[t]);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const auto value = read_strided<stride>(from + v * width * stride);
      const auto more = (value > most[v]) | (value != value);
      most[v] = more ? value : most[v];
      place[v] = more ? here : place[v];
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    V values[width];
    Int places[width];
    std::memcpy(values, &most[v], sizeof(most[v]));
    std::memcpy(places, &place[v], sizeof(place[v]));
#pragma omp simd
    for (int j = 0; j < width; ++j) y[v * width + j] = store<T>(values[j]);
#pragma omp simd
    for (int j = 0; j < width; ++j) argmax[v * width + j] = uint8_t(places[j]);
  }
}

// The same for n outputs, at least a vector of them. The last vector may overlap the one before.
template <int stride, class T, class V>
void max_of_span(const Taps<V>& taps, int64_t shift, int64_t n, T* y, uint8_t* argmax) {
  constexpr int width = VectorOf<V>::width, together = 4;
  int64_t i = 0;
  for (; i + together * width <= n; i += together * width)
    max_of_vectors<stride, together>(taps, shift + i * stride, y + i, argmax + i);
  for (; i < n; i += width) {
    const int64_t first = std::min(i, n - width);
    max_of_vectors<stride, 1>(taps, shift + first * stride, y + first, argmax + first);
  }
}

// Maxima of n neighbouring outputs of a plane.
template <class T, class V>
void max_of_plane(const Taps<V>& taps, int64_t n, int64_t stride, T* y, uint8_t* argmax) {
  if (n < VectorOf<V>::width || stride > 2) return max_of_each(taps, 0, n, stride, y, argmax);
  if (stride == 1)
    max_of_span<1>(taps, 0, n, y, argmax);
  else
    max_of_span<2>(taps, 0, n, y, argmax);
}

// Maxima of the n channels of one output.
template <class T, class V>
void max_of_channels(const Taps<V>& taps, int64_t shift, int64_t n, T* y, uint8_t* argmax) {
  if (n < VectorOf<V>::width) return max_of_each(taps, shift, n, 1, y, argmax);
  max_of_span<1>(taps, shift, n, y, argmax);
}

// How far each place is from the first place of its window, in elements, where neighbouring positions are `step` apart.
struct PlaceOffsets {
  int64_t offset[kMaxPlaces] = {};

  PlaceOffsets(const MaxPool& pool, int64_t step) {
    for (int64_t place = 0; place < pool.places(); ++place) {
      const int64_t row = place / pool.width.kernel, column = place % pool.width.kernel;
      offset[place] = (row * pool.height.dilation * pool.width.size + column * pool.width.dilation) * step;
    }
  }
};

// The maxima of n outputs whose windows start `stride` apart, the first one at x.
template <class T>
void gather_maxima(const T* x, const uint8_t* argmax, const PlaceOffsets& places, int64_t n, int64_t stride,
                   OpMath<T>* maxima) {
  const int64_t* offset = places.offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) maxima[i] = load(x[i * stride + offset[argmax[i]]]);
}

// Adds the gradients of n outputs to their maxima, in the order of the outputs.
template <class T>
void scatter_gradients(const T* dy, const uint8_t* argmax, const PlaceOffsets& places, int64_t n, int64_t stride,
                       OpMath<T>* sums) {
  for (int64_t i = 0; i < n; ++i) sums[i * stride + places.offset[argmax[i]]] += load(dy[i]);
}

}  // namespace fusedtricks::cpu

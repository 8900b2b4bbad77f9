// The loops of max-pooling, for planes and rows alike: over neighbouring outputs of a plane, whose elements lie a
// stride apart, or over the channels of one output.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../element.h"
#include "../max_pool.h"
#include "memory.h"

namespace fusedtricks::cpu {

// The places of a window that lie inside the image: where the first output's element at each is, and its number.
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

// One output after the other: the first maximum, and NaN above all, the last one, as stock has it.
template <class T, class V>
void max_of_each(const Taps<V>& taps, int64_t n, int64_t stride, T* y, uint8_t* argmax) {
  for (int64_t i = 0; i < n; ++i) {
    V most = taps.first[0][i * stride];
    uint8_t place = taps.place[0];
    for (int t = 1; t < taps.count; ++t) {
      const V value = taps.first[t][i * stride];
      if (value > most || value != value) most = value, place = taps.place[t];
    }
    y[i] = store<T>(most);
    argmax[i] = place;
  }
}

// The same for n outputs, `stride` elements apart, a vector at a time; the last one reaches back.
template <int stride, class T, class V>
void max_of_vectors(const Taps<V>& taps, int64_t n, T* y, uint8_t* argmax) {
  using Int = typename ExpTraits<V>::Int;
  constexpr int width = kVectorSize / int(sizeof(V));
  typedef V Values __attribute__((vector_size(kVectorSize)));
  typedef Int Places __attribute__((vector_size(kVectorSize)));
  const auto read = [](const V* from) {
    V values[width];
#pragma omp simd
    for (int j = 0; j < width; ++j) values[j] = from[j * stride];
    Values vector;
    std::memcpy(&vector, values, sizeof(vector));
    return vector;
  };
  for (int64_t i = 0; i < n; i += width) {
    const int64_t first = std::min(i, n - width);
    Values most = read(taps.first[0] + first * stride);
    Places place = Places{} + Int(taps.place[0]);
    for (int t = 1; t < taps.count; ++t) {
      const Values value = read(taps.first[t] + first * stride);
      const Places more = (value > most) | (value != value);
      most = more ? value : most;
      place = more ? Places{} + Int(taps.place[t]) : place;
    }
    V values[width];
    Int places[width];
    std::memcpy(values, &most, sizeof(most));
    std::memcpy(places, &place, sizeof(place));
#pragma omp simd
    for (int j = 0; j < width; ++j) y[first + j] = store<T>(values[j]);
#pragma omp simd
    for (int j = 0; j < width; ++j) argmax[first + j] = uint8_t(places[j]);
  }
}

template <class T, class V>
void max_of_taps(const Taps<V>& taps, int64_t n, int64_t stride, T* y, uint8_t* argmax) {
  if (n < kVectorSize / int64_t(sizeof(V)) || stride > 2) return max_of_each(taps, n, stride, y, argmax);
  if (stride == 1)
    max_of_vectors<1>(taps, n, y, argmax);
  else
    max_of_vectors<2>(taps, n, y, argmax);
}

// Where the element at each place lies, from the first of its window on, in an image whose elements are `step` apart.
struct PlaceOffsets {
  int64_t offset[kMaxPlaces] = {};

  PlaceOffsets(const MaxPool& pool, int64_t step) {
    for (int64_t place = 0; place < pool.places(); ++place) {
      const int64_t row = place / pool.columns.kernel, column = place % pool.columns.kernel;
      offset[place] = (row * pool.rows.dilation * pool.columns.size + column * pool.columns.dilation) * step;
    }
  }
};

// The maxima themselves, of n outputs whose windows begin `stride` apart, from x on.
template <class T>
void gather_maxima(const T* x, const uint8_t* argmax, const PlaceOffsets& places, int64_t n, int64_t stride,
                   Compute<T>* maxima) {
  const int64_t* offset = places.offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) maxima[i] = load(x[i * stride + offset[argmax[i]]]);
}

// Adds to each element the gradients of the outputs that it is the maximum of, in their order.
template <class T>
void scatter_gradients(const T* dy, const uint8_t* argmax, const PlaceOffsets& places, int64_t n, int64_t stride,
                       Compute<T>* sums) {
  for (int64_t i = 0; i < n; ++i) sums[i * stride + places.offset[argmax[i]]] += load(dy[i]);
}

}  // namespace fusedtricks::cpu

// For tensors larger than the caches: outputs are written past them, inputs are brought into L2 in address order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/simd/instruction_set.h"

namespace fusedtricks::cpu {

// Larger outputs would have left the caches before their reader comes.
constexpr int64_t kStreamBytes = 12 << 20;
constexpr int64_t kCacheLine = 64;

inline bool is_vector_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0; }

// n zeros that start at a cache line, so that no vector crosses one.
template <class T>
class AlignedVector {
 public:
  explicit AlignedVector(int64_t n) : memory_(n + kCacheLine / int64_t(sizeof(T))), size_(n) {}
  AlignedVector(const AlignedVector&) = delete;
  AlignedVector& operator=(const AlignedVector&) = delete;

  T* data() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (kCacheLine - address % kCacheLine) % kCacheLine / sizeof(T);
  }
  T* begin() { return data(); }
  T* end() { return data() + size_; }

 private:
  std::vector<T> memory_;
  int64_t size_;
};

inline bool worth_streaming(int64_t elements, int64_t element_size, int64_t from_bytes = kStreamBytes) {
  return kHasStreamingStores && elements * element_size >= from_bytes;
}

// Copies that many bytes past the caches; `to` is a multiple of a vector.
template <int bytes>
inline void stream_vectors(void* to, const void* from) {
  static_assert(bytes % kVectorBytes == 0);
#pragma GCC unroll 4
  for (int i = 0; i < bytes; i += kVectorBytes) {
    stream_vector(static_cast<char*>(to) + i, static_cast<const char*>(from) + i);
  }
}

// memcpy with streaming stores: the lines of `to` are not read before they are overwritten. Call stream_fence() after
// the last one.
inline void stream_copy(void* to, const void* from, int64_t bytes) {
  char* d = static_cast<char*>(to);
  const char* s = static_cast<const char*>(from);
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(d) & (kCacheLine - 1));
  std::memcpy(d, s, head);
  d += head, s += head, bytes -= head;
  if (kHasStreamingStores) {
    for (; bytes >= kVectorBytes; bytes -= kVectorBytes, d += kVectorBytes, s += kVectorBytes) stream_vector(d, s);
  }
  std::memcpy(d, s, bytes);
}

// Loads one byte of each cache line of a block, in address order. Then the block comes from memory at the rate of a
// plain read; a sweep that keeps many accumulators reaches half of that.
inline void touch(const void* base, int64_t rows, int64_t stride, int64_t bytes) {
  if (bytes == stride) bytes *= rows, rows = 1;
  for (int64_t r = 0; r < rows; ++r) {
    const volatile char* row = static_cast<const volatile char*>(base) + r * stride;
    for (int64_t i = 0; i < bytes; i += kCacheLine) (void)row[i];
  }
}

constexpr int64_t kTile = 2048;  // elements of an output tile, which stays in L1

// Writes out[0, n) by calls of span(to, first, count), each of which writes elements [first, first + count) to `to`.
// Where the output is streamed, `to` is a tile in L1 that is copied past the caches afterwards.
template <class T, class Span>
void emit(T* out, int64_t n, bool stream, const Span& span) {
  if (!stream) return span(out, 0, n);
  alignas(kCacheLine) T tile[kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t count = std::min(kTile, n - i);
    span(tile, i, count);
    stream_copy(out + i, tile, count * sizeof(T));
  }
}

}  // namespace fusedtricks::cpu

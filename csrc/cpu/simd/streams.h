// Large tensors: outputs written past the caches, inputs brought into L2 in address order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fusedtricks::cpu {

// Outputs from this size on do not stay in the caches until their reader comes.
constexpr int64_t kStreamBytes = 12 << 20;
constexpr int64_t kCacheLine = 64;

#if defined(__AVX512F__)
constexpr int kVectorSize = 64;
#elif defined(__AVX2__)
constexpr int kVectorSize = 32;
#else
constexpr int kVectorSize = 16;
#endif

inline bool is_vector_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorSize == 0; }

// n zeros from the beginning of a cache line on, so that no vector crosses one.
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
#if defined(__x86_64__)
  return elements * element_size >= from_bytes;
#else
  (void)elements, (void)element_size, (void)from_bytes;
  return false;
#endif
}

// Writes whole vectors past the caches. `to` is a multiple of one.
template <int bytes>
inline void stream_vector(void* to, const void* from) {
  static_assert(bytes % kVectorSize == 0);
  char* d = static_cast<char*>(to);
  const char* s = static_cast<const char*>(from);
#pragma GCC unroll 4
  for (int i = 0; i < bytes; i += kVectorSize) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(d + i), _mm512_loadu_si512(s + i));
#elif defined(__AVX__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(d + i), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(s + i)));
#elif defined(__x86_64__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(d + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(s + i)));
#else
    std::memcpy(d + i, s + i, kVectorSize);
#endif
  }
}

// memcpy by non-temporal stores: no line is read in order to be overwritten. Needs stream_fence() after the last one.
inline void stream_copy(void* to, const void* from, int64_t bytes) {
  char* d = static_cast<char*>(to);
  const char* s = static_cast<const char*>(from);
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(d) & (kCacheLine - 1));
  std::memcpy(d, s, head);
  d += head, s += head, bytes -= head;
#if defined(__x86_64__)
  for (; bytes >= kVectorSize; bytes -= kVectorSize, d += kVectorSize, s += kVectorSize)
    stream_vector<kVectorSize>(d, s);
#endif
  std::memcpy(d, s, bytes);
}

inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// One load a cache line, in address order: a block of rows comes from memory at the rate of a plain read, where a sweep
// that keeps many accumulators reaches half of that.
inline void touch(const void* base, int64_t rows, int64_t stride, int64_t bytes) {
  if (bytes == stride) bytes *= rows, rows = 1;
  for (int64_t r = 0; r < rows; ++r) {
    const volatile char* row = static_cast<const volatile char*>(base) + r * stride;
    for (int64_t i = 0; i < bytes; i += kCacheLine) (void)row[i];
  }
}

constexpr int64_t kTile = 2048;  // elements of an output tile in L1

// Has span(destination, first, count) write the n elements of out, by way of a tile in L1 where they are streamed.
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

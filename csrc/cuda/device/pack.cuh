// Packs: n neighbouring elements that move in one access of up to 16 bytes.
#pragma once

#include <cstring>

#include "core/scalar.h"
#include "cuda/device/platform.cuh"

namespace fusedtricks::cuda {

constexpr int kPackBytes = 16;

template <class T>
constexpr int kPack = kPackBytes / int(sizeof(T));

template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  T value[n];
};

// Whether what is read or written will be read again by the next kernel; else its line is the first to leave the
// caches.
enum class Read { kAgain, kOnce };
enum class Write { kReadNext, kLast };

template <Write write, class T, int n>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, n>& pack) {
  if constexpr (sizeof(pack) == kPackBytes) {
    uint4 bits;
    std::memcpy(&bits, &pack, sizeof(pack));
    if (write == Write::kLast)
      __stcs(reinterpret_cast<uint4*>(p), bits);
    else
      *reinterpret_cast<uint4*>(p) = bits;
  } else {
    *reinterpret_cast<Pack<T, n>*>(p) = pack;
  }
}

// The values of a pack in the compute type.
template <class T, int n>
__device__ __forceinline__ void unpack(const Pack<T, n>& pack, OpMath<T> (&values)[n]) {
#pragma unroll
  for (int e = 0; e < n; ++e) values[e] = load(pack.value[e]);
}

template <class T, int n>
__device__ __forceinline__ Pack<T, n> rounded_pack(const OpMath<T> (&values)[n]) {
  Pack<T, n> pack;
#pragma unroll
  for (int e = 0; e < n; ++e) pack.value[e] = store<T>(values[e]);
  return pack;
}

// The elements [first, last) of the pack at `index` of a tensor.
template <int n>
struct Piece {
  int64_t index;
  int first, last;

  __device__ __forceinline__ bool has(int element) const { return first <= element && element < last; }
  __device__ __forceinline__ bool whole() const { return first == 0 && last == n; }
  __device__ __forceinline__ bool empty() const { return first >= last; }
};

// The pack of a piece, zero where it is empty. What lies beside the piece is read as well, at the end of the tensor up
// to the end of a block of 16 bytes, which no allocation cuts. The pack stays in one register of 16 bytes until it is
// used: put together of elements, it would have to be there before the next is asked for.
template <Read read, class T, int n>
__device__ __forceinline__ Pack<T, n> load_piece(const T* tensor, const Piece<n>& piece, int64_t numel) {
  Pack<T, n> pack;
  if constexpr (sizeof(pack) == kPackBytes) {
    uint4 bits{};
    if (!piece.empty()) bits = read_block<read == Read::kOnce>(tensor + piece.index, (numel - piece.index) * sizeof(T));
    std::memcpy(&pack, &bits, sizeof(pack));
  } else {
    std::memset(&pack, 0, sizeof(pack));
    if (!piece.empty()) pack = *reinterpret_cast<const Pack<T, n>*>(tensor + piece.index);
  }
  return pack;
}

template <Write write = Write::kLast, class T, int n>
__device__ __forceinline__ void store_piece(T* tensor, const Piece<n>& piece, const Pack<T, n>& pack) {
  if (piece.whole()) return store_pack<write, T, n>(tensor + piece.index, pack);
#pragma unroll
  for (int e = 0; e < n; ++e) {
    if (piece.has(e)) tensor[piece.index + e] = pack.value[e];
  }
}

// The same into shared memory, by copies that wait_for_copies waits for; nothing where the piece is empty.
template <class T, int n>
__device__ __forceinline__ void copy_piece_async(Pack<T, n>* shared, const T* tensor, const Piece<n>& piece,
                                                 int64_t numel) {
  static_assert(sizeof(Pack<T, n>) == kPackBytes);
  if (piece.whole() || (!piece.empty() && piece.index + n <= numel)) return copy_async(shared, tensor + piece.index);
  if (!piece.empty()) *shared = load_piece<Read::kAgain>(tensor, piece, numel);
}

// Whether packs of a tensor that begins there may be moved in one access.
inline bool is_pack_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kPackBytes == 0; }

}  // namespace fusedtricks::cuda

// Packs: n elements that lie next to each other and move in one access of up to 16 bytes.
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "core/scalar.h"
#include "cuda/device/platform.cuh"

namespace fusedtricks::cuda {

constexpr int kPackBytes = 16;

// Elements of the largest pack.
template <class T>
constexpr int kPack = kPackBytes / int(sizeof(T));

template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  T value[n];
};

// Whether the memory that is read or written now will be read again soon. If not, the caches may evict it first.
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

// From a pack to its values in the type that is computed in, and back.
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

// Elements [first, last) of the pack that begins at `index` of a tensor.
template <int n>
struct Piece {
  int64_t index;
  int first, last;

  __device__ __forceinline__ bool has(int element) const { return first <= element && element < last; }
  __device__ __forceinline__ bool whole() const { return first == 0 && last == n; }
  __device__ __forceinline__ bool empty() const { return first >= last; }
};

// The whole pack that a piece belongs to, or zeros if the piece is empty. So elements beside the piece are read as
// well. At the end of a tensor this can reach past it, up to the next multiple of 16 bytes, which is still inside the
// allocation. The 16 bytes stay in one uint4 until they are used: if the pack were assembled from elements, it would
// have to arrive before the next load can be issued.
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

// The packs of several pieces that will be read again.
template <class T, int n, int count>
__device__ __forceinline__ void load_pieces(const T* tensor, const Piece<n> (&pieces)[count], int64_t numel,
                                            Pack<T, n> (&packs)[count]) {
#pragma unroll
  for (int u = 0; u < count; ++u) packs[u] = load_piece<Read::kAgain>(tensor, pieces[u], numel);
}

// Writes the elements of the piece and nothing beside it.
template <Write write = Write::kLast, class T, int n>
__device__ __forceinline__ void store_piece(T* tensor, const Piece<n>& piece, const Pack<T, n>& pack) {
  if (piece.whole()) return store_pack<write, T, n>(tensor + piece.index, pack);
#pragma unroll
  for (int e = 0; e < n; ++e) {
    if (piece.has(e)) tensor[piece.index + e] = pack.value[e];
  }
}

// Starts to copy the pack of a piece into shared memory; wait_for_copies() waits for it. Does nothing if the piece is
// empty.
template <class T, int n>
__device__ __forceinline__ void copy_piece_async(Pack<T, n>* shared, const T* tensor, const Piece<n>& piece,
                                                 int64_t numel) {
  static_assert(sizeof(Pack<T, n>) == kPackBytes);
  if (piece.whole() || (!piece.empty() && piece.index + n <= numel)) return copy_async(shared, tensor + piece.index);
  if (!piece.empty()) *shared = load_piece<Read::kAgain>(tensor, piece, numel);
}

// Whether a tensor that begins at this address can be moved by packs: whether it begins at a multiple of one.
inline bool is_pack_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kPackBytes == 0; }

// The same for several tensors. A null pointer stands for a tensor that is not there.
inline bool are_pack_aligned(std::initializer_list<const void*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), is_pack_aligned);
}

}  // namespace fusedtricks::cuda

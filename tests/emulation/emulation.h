// The words of CUDA that the kernels use, for a C++20 compiler that builds them for the CPU, so that tests can run them
// without a GPU.
//
// It finds: a barrier that not all threads reach; shared memory that is read before it is written (as NaN) or before a
// copy into it was waited for; accesses past the end of dynamic shared memory; misaligned vectors; and, if a test runs
// a kernel under every schedule, results that depend on the order of threads or blocks. It does not find races that
// only show if threads are interrupted between barriers, nor faults of the memory model, and it says nothing about
// speed.
//
// Rules for the kernels: threads that wait for each other do so at the same call in the source, and either all threads
// of the block or exactly the lanes of the mask come there. No thread spins until another one has written something,
// except in meet_blocks(). Dynamic shared memory comes from dynamic_shared(). An array that is declared __shared__
// still holds what the block before left in it, and only UBSan's `bounds` checks its indices.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>  // before __noinline__ is a macro: libstdc++ uses it as the name of an attribute
#include <type_traits>

#include "grid.h"

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __shared__
#undef __constant__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __constant__ static const
#define __align__(n) __attribute__((aligned(n)))

using cudaStream_t = void*;

#define FT_VECTOR2(Name, T, bytes) \
  struct alignas(bytes) Name {     \
    T x, y;                        \
  };                               \
  inline Name make_##Name(T x, T y) { return {x, y}; }
#define FT_VECTOR4(Name, T, bytes) \
  struct alignas(bytes) Name {     \
    T x, y, z, w;                  \
  };                               \
  inline Name make_##Name(T x, T y, T z, T w) { return {x, y, z, w}; }
FT_VECTOR2(uint2, unsigned, 8)
FT_VECTOR2(float2, float, 8)
FT_VECTOR2(double2, double, 16)
FT_VECTOR4(uint4, unsigned, 16)
FT_VECTOR4(int4, int, 16)
#undef FT_VECTOR2
#undef FT_VECTOR4

namespace fusedtricks::emulation {

using Where = std::source_location;

inline uint32_t vote(const char* name, Rendezvous::Scope scope, bool predicate, const Where& where) {
  return Block::current().wait({scope, name, 0, where}, predicate, 0).votes;
}

inline uint32_t vote_lanes(const char* name, uint32_t lanes, bool predicate, const Where& where) {
  Block& block = Block::current();
  return block.wait({Rendezvous::kLanes, name, lanes, where}, predicate, block.lane()).votes;
}

// The caller's lane, and the first and last of its group of `width`, a power of two.
struct Group {
  explicit Group(int width) : own(int(Block::current().lane())), first(own & ~(width - 1)), last(own | (width - 1)) {}
  int own, first, last;
};

template <class T>
T shuffle(const char* name, uint32_t lanes, T value, int source, const Where& where) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = Block::current().wait({Rendezvous::kLanes, name, lanes, where}, bits, unsigned(source)).value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Refuses misaligned vectors, as the hardware does.
template <class T>
T* aligned(T* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T)) throw std::runtime_error("misaligned address in a load or store");
  return p;
}

template <class Call>
Launch checked_launch(int64_t blocks, int threads, size_t shared_bytes, const Call& call) {
  check_configuration(blocks, threads, shared_bytes);
  return {unsigned(blocks), unsigned(threads), shared_bytes, call};
}

}  // namespace fusedtricks::emulation

#define FT_WHERE const ::fusedtricks::emulation::Where& where = ::fusedtricks::emulation::Where::current()
#define FT_BLOCK_VOTE(predicate) \
  ::fusedtricks::emulation::vote(__func__, ::fusedtricks::emulation::Rendezvous::kBlock, predicate, where)
#define FT_LANES_VOTE(lanes, predicate) ::fusedtricks::emulation::vote_lanes(__func__, lanes, predicate, where)

inline void __syncthreads(FT_WHERE) { FT_BLOCK_VOTE(false); }
inline int __syncthreads_or(int predicate, FT_WHERE) { return FT_BLOCK_VOTE(predicate) != 0; }
inline int __syncthreads_count(int predicate, FT_WHERE) { return int(FT_BLOCK_VOTE(predicate)); }

inline void __syncwarp(unsigned lanes = ~0u, FT_WHERE) { FT_LANES_VOTE(lanes, false); }
inline unsigned __ballot_sync(unsigned lanes, int predicate, FT_WHERE) { return FT_LANES_VOTE(lanes, predicate); }
inline int __any_sync(unsigned lanes, int predicate, FT_WHERE) { return FT_LANES_VOTE(lanes, predicate) != 0; }
inline int __all_sync(unsigned lanes, int predicate, FT_WHERE) { return FT_LANES_VOTE(lanes, predicate) == lanes; }

template <class T>
T __shfl_sync(unsigned lanes, T value, int source, int width = 32, FT_WHERE) {
  const int first = ::fusedtricks::emulation::Group(width).first;
  return ::fusedtricks::emulation::shuffle(__func__, lanes, value, first + (source & (width - 1)), where);
}

// In these three a lane reads its own value if the lane it should read lies outside the group.
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int bits, int width = 32, FT_WHERE) {
  const ::fusedtricks::emulation::Group group(width);
  const int source = (group.own ^ bits) <= group.last ? group.own ^ bits : group.own;
  return ::fusedtricks::emulation::shuffle(__func__, lanes, value, source, where);
}

template <class T>
T __shfl_down_sync(unsigned lanes, T value, unsigned delta, int width = 32, FT_WHERE) {
  const ::fusedtricks::emulation::Group group(width);
  const int source = delta <= unsigned(group.last - group.own) ? group.own + int(delta) : group.own;
  return ::fusedtricks::emulation::shuffle(__func__, lanes, value, source, where);
}

template <class T>
T __shfl_up_sync(unsigned lanes, T value, unsigned delta, int width = 32, FT_WHERE) {
  const ::fusedtricks::emulation::Group group(width);
  const int source = delta <= unsigned(group.own - group.first) ? group.own - int(delta) : group.own;
  return ::fusedtricks::emulation::shuffle(__func__, lanes, value, source, where);
}

template <class T>
T __ldcs(const T* p) {
  return *::fusedtricks::emulation::aligned(p);
}

template <class T>
T __ldcg(const T* p) {
  return *::fusedtricks::emulation::aligned(p);
}

template <class T>
T __ldg(const T* p) {
  return *::fusedtricks::emulation::aligned(p);
}

template <class T>
void __stcs(T* p, std::type_identity_t<T> value) {
  *::fusedtricks::emulation::aligned(p) = value;
}

template <class T>
void __stcg(T* p, std::type_identity_t<T> value) {
  *::fusedtricks::emulation::aligned(p) = value;
}

inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*p).fetch_add(value, std::memory_order_relaxed);
}

namespace fusedtricks::cuda {

using emulation::multiprocessors;
using emulation::shared_memory_per_block;

template <bool once>
uint4 read_block(const void* p, int64_t bytes_there) {
  uint4 block{};
  std::memcpy(&block, emulation::aligned(static_cast<const uint4*>(p)), size_t(bytes_there < 16 ? bytes_there : 16));
  return block;
}

inline void copy_async(void* shared, const void* global) { emulation::Block::current().copy_later(shared, global); }
inline void wait_for_copies() { emulation::Block::current().finish_copies(); }

// Runs the whole kernel before it returns, and throws what goes wrong in it.
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, A... arguments) {
  emulation::run_blocks(emulation::checked_launch(blocks, threads, shared_bytes, [=] { kernel(arguments...); }));
}

// With all blocks resident at the same time, as grid_sync() needs it.
template <class... P, class... A>
void launch_cooperative(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, A... arguments) {
  emulation::run_resident(emulation::checked_launch(blocks, threads, shared_bytes, [=] { kernel(arguments...); }));
}

inline void grid_sync(FT_WHERE) { emulation::vote(__func__, emulation::Rendezvous::kGrid, false, where); }

inline void meet_blocks(uint32_t* arrivals, uint32_t all, FT_WHERE) {
  __syncthreads(where);
  if (threadIdx.x == 0) ++*arrivals;
  emulation::Block::current().wait({emulation::Rendezvous::kArrivals, __func__, 0, where, arrivals, all}, 0, 0);
}

// The same memory for every type, aligned as CUDA aligns it.
template <class T>
T* dynamic_shared() {
  static_assert(alignof(T) <= 16);
  return static_cast<T*>(emulation::Block::current().shared());
}

}  // namespace fusedtricks::cuda

#undef FT_WHERE
#undef FT_BLOCK_VOTE
#undef FT_LANES_VOTE

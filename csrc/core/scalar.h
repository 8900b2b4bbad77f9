// Elements of tensors: the kernels load a T, compute in OpMath<T> (double for double, float for every other type) and
// round once, when they store. On the CPU the conversions are integer arithmetic, so that loops over them vectorise on
// every instruction set.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "core/elementary.h"

#if defined(__CUDA_ARCH__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fusedtricks {

template <class T>
struct OpMathType {
  using type = float;
};

template <>
struct OpMathType<double> {
  using type = double;
};

template <class T>
using OpMath = typename OpMathType<T>::type;

// The 16-bit numbers of these four functions are in the low half of a word.
FT_INLINE float from_bfloat16(uint32_t bits) { return bit_cast<float>(bits << 16); }

// The multiplication adjusts the exponent's bias, and normalises subnormals on the way.
FT_INLINE float from_half(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#else
  const uint32_t sign = (bits & 0x8000u) << 16, magnitude = (bits & 0x7fffu) << 13;
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // Inf and NaN
  return bit_cast<float>(finite | special | sign);
#endif
}

// Rounds to nearest even. A NaN stays NaN unless one of its low 16 bits is set. No NaN of our computations has one set:
// neither the one that the processor makes nor those loaded from 16 bits. Numbers from elsewhere that enter a
// computation on bfloat16 must go through canonical() first.
FT_INLINE uint32_t to_bfloat16(float x) {
#if defined(__CUDA_ARCH__)
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
#endif
}

FT_INLINE uint32_t to_half(float x) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t sign = bit_cast<uint32_t>(x) & 0x80000000u, magnitude = bit_cast<uint32_t>(x) ^ sign;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  // Below 2^-14, adding 0.5, whose last bit is worth 2^-24, rounds. Above, the carry of an integer addition does.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return (magnitude >= 0x47800000u ? special : finite) | (sign >> 16);
#endif
}

FT_INLINE float load(float x) { return x; }
FT_INLINE double load(double x) { return x; }
FT_INLINE float load(c10::BFloat16 x) { return from_bfloat16(x.x); }
FT_INLINE float load(c10::Half x) { return from_half(x.x); }

template <class T>
FT_INLINE T store(OpMath<T> x) {
  return x;
}

template <>
FT_INLINE c10::BFloat16 store<c10::BFloat16>(float x) {
  return c10::BFloat16(uint16_t(to_bfloat16(x)), c10::BFloat16::from_bits());
}

template <>
FT_INLINE c10::Half store<c10::Half>(float x) {
  return c10::Half(uint16_t(to_half(x)), c10::Half::from_bits());
}

// The value in V; any NaN becomes the default one.
template <class V>
FT_INLINE V canonical(double value) {
  return value == value ? V(value) : std::numeric_limits<V>::quiet_NaN();
}

// A double rounded to the compute type, then to T.
template <class T>
FT_INLINE T store_double(double x) {
  if constexpr (std::is_same_v<T, c10::BFloat16>)
    return store<T>(canonical<float>(x));
  else
    return store<T>(OpMath<T>(x));
}

// load(store<T>(x)). For 16-bit types in 32-bit integers throughout: gcc does not vectorise a loop that goes through
// 16-bit ones.
template <class T>
FT_INLINE OpMath<T> rounded(OpMath<T> x) {
  if constexpr (std::is_same_v<T, c10::BFloat16>)
    return from_bfloat16(to_bfloat16(x));
  else if constexpr (std::is_same_v<T, c10::Half>)
    return from_half(to_half(x));
  else
    return load(store<T>(x));
}

// store<T>(x) for an x that already is a value of T.
template <class T>
FT_INLINE T store_rounded(OpMath<T> x) {
  if constexpr (std::is_same_v<T, c10::BFloat16>)
    return T(uint16_t(bit_cast<uint32_t>(x) >> 16), T::from_bits());
  else
    return store<T>(x);
}

}  // namespace fusedtricks

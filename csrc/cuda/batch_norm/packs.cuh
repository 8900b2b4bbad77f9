// What batch_norm_act computes of a pack: y; dz and its sums; dx.
#pragma once

#include "cuda/batch_norm/dropout.cuh"
#include "cuda/batch_norm/finish.cuh"
#include "cuda/device/activation_packs.cuh"

namespace fusedtricks::cuda {

// act((x - shift) * scale + offset [+ residual]), which finish(values) then changes.
template <bool has_residual, class T, class Walk, class Act, class Finish = AsTheyAre>
__device__ __forceinline__ Pack<T, Walk::pack> normalized(const Pack<T, Walk::pack>& x,
                                                          const Pack<T, Walk::pack>& residual,
                                                          const Own<OpMath<T>, Walk, kForwardKinds>& own,
                                                          const Act& act, const Finish& finish = {}) {
  OpMath<T> z[Walk::pack];
  unpack(x, z);
#pragma unroll
  for (int e = 0; e < Walk::pack; ++e) {
    z[e] = (z[e] - own.get(kShift, e)) * own.get(kScale, e) + own.get(kOffset, e);
    if (has_residual) z[e] += load(residual.value[e]);
  }
  activate(act, z);
  finish(z);
  return rounded_pack<T>(z);
}

// What the activation's derivative is computed from: z, made of the input alone; the output; or z, made of the input
// and the residual.
enum class Derivative { kAtInput, kOfOutput, kAtResidual };

// Computes dz = dy * act' of a piece, adds dz and dz * (x - shift) * rstd to the sums and returns dz. prepare(values)
// changes dy before. other: the output or the residual, whichever `derivative` needs. If the kernel writes dz to
// memory, it is the rounded dz that is summed, because dx will be computed from that one.
template <Derivative derivative, class T, class Walk, class Act, class Prepare = AsTheyAre>
__device__ __forceinline__ Pack<T, Walk::pack> add_gradients(
    const Piece<Walk::pack>& piece, const Pack<T, Walk::pack>& x, const Pack<T, Walk::pack>& dy,
    const Pack<T, Walk::pack>& other, const Own<OpMath<T>, Walk, kSumKinds>& own, const Act& act,
    Sums<OpMath<T>> (&sums)[Walk::channels], const Prepare& prepare = {}) {
  constexpr int n = Walk::pack;
  OpMath<T> d[n], z[n], dz[n];
  unpack(dy, dz);
  prepare(dz);
  unpack(x, d);
#pragma unroll
  for (int e = 0; e < n; ++e) {
    d[e] -= own.get(kShift, e);
    z[e] = derivative == Derivative::kOfOutput ? load(other.value[e]) : d[e] * own.get(kScale, e) + own.get(kOffset, e);
    if (derivative == Derivative::kAtResidual) z[e] += load(other.value[e]);
  }
  if constexpr (derivative == Derivative::kOfOutput)
    multiply_by_derivative_of_result(act, dz, z);
  else
    multiply_by_derivative(act, dz, z);
  Pack<T, n> result{};
  if constexpr (derivative != Derivative::kAtInput) {
    result = rounded_pack<T>(dz);
    unpack(result, dz);
  }
#pragma unroll
  for (int e = 0; e < n; ++e) {
    if (!piece.has(e)) continue;
    sums[Walk::channel_of(e)].first += dz[e];
    sums[Walk::channel_of(e)].second += dz[e] * (d[e] * own.get(kRstd, e));
  }
  return result;
}

// dx = dz * scale + (x - shift) * rstd * slope + constant, where dz is the given gradient times act'(z).
template <class T, class Walk, class Act>
__device__ __forceinline__ Pack<T, Walk::pack> differentiated(const Pack<T, Walk::pack>& x, OpMath<T> (&dz)[Walk::pack],
                                                              const Own<OpMath<T>, Walk, kCoefficients>& own,
                                                              const Act& act) {
  constexpr int n = Walk::pack;
  OpMath<T> d[n], z[n];
  unpack(x, d);
#pragma unroll
  for (int e = 0; e < n; ++e) {
    d[e] -= own.get(kShift, e);
    z[e] = d[e] * own.get(kScale, e) + own.get(kOffset, e);
  }
  multiply_by_derivative(act, dz, z);
#pragma unroll
  for (int e = 0; e < n; ++e) {
    dz[e] = dz[e] * own.get(kScale, e) + BackwardCoefficients<OpMath<T>>::of_statistics(
                                             d[e] * own.get(kRstd, e), own.get(kSlope, e), own.get(kConstant, e));
  }
  return rounded_pack<T>(dz);
}

// The same from a pack of dy, which prepare(values) changes before.
template <class T, class Walk, class Act, class Prepare = AsTheyAre>
__device__ __forceinline__ Pack<T, Walk::pack> differentiated(const Pack<T, Walk::pack>& x,
                                                              const Pack<T, Walk::pack>& dy,
                                                              const Own<OpMath<T>, Walk, kCoefficients>& own,
                                                              const Act& act, const Prepare& prepare = {}) {
  OpMath<T> dz[Walk::pack];
  unpack(dy, dz);
  prepare(dz);
  return differentiated<T, Walk>(x, dz, own, act);
}

}  // namespace fusedtricks::cuda

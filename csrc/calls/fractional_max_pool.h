// Arguments of the kernels of fractional max-pooling, and where its windows start.
// Graham, "Fractional max-pooling", 2014.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

#include "calls/kernel.h"
#include "core/activation_functions.h"
#include "core/mask_source.h"
#include "core/philox.h"
#include "core/scalar.h"

namespace fusedtricks {

enum Dimension { kDepth, kHeight, kWidth, kDimensions };

struct PoolShape {
  int rank;  // number of pooled dimensions, 2 or 3; with 2 the depth is 1
  int64_t batch, channels;
  int64_t input[kDimensions], output[kDimensions], kernel[kDimensions];
  bool channels_last;  // of the input and the outputs alike

  FT_INLINE static int64_t product(const int64_t (&sizes)[kDimensions]) { return sizes[0] * sizes[1] * sizes[2]; }

  FT_INLINE int64_t planes() const { return batch * channels; }
  FT_INLINE int64_t positions() const { return product(input); }
  FT_INLINE int64_t windows() const { return product(output); }
  FT_INLINE int64_t places() const { return product(kernel); }

  // Bytes of the place of a maximum in its window. Places are numbered in row-major order.
  FT_INLINE int place_bytes() const { return places() <= 1 << 8 ? 1 : places() <= 1 << 16 ? 2 : 4; }

  // Which of a plane's random numbers a pooled dimension takes. PyTorch has width before height in 2d, but depth,
  // height, width in 3d.
  FT_INLINE int sample_of(int dimension) const { return rank == 3 ? dimension : kWidth - dimension; }
};

// The random numbers of the planes: a tensor (batch, channels, rank), PyTorch's `_random_samples`. If that is null,
// number k of plane p is word p * rank + k of the call's random stream, divided by 2^32.
struct PoolSamples {
  const void* given;
  c10::ScalarType dtype;
};

FT_INLINE double pool_sample(uint32_t word) { return word * 0x1p-32; }

// Where the windows of one dimension start: window i at floor((i + u) alpha) - floor(u alpha) with the random number u,
// and the last one at the end of the input. As in PyTorch, every operation is rounded to T. A window that would leave
// the input, because u is outside [0, 1) or T is a 16-bit type, is moved to the border.
template <class T>
class WindowStarts {
 public:
  using V = OpMath<T>;

  FT_INLINE WindowStarts(V sample, int64_t input, int64_t output, int64_t kernel)
      : sample_(sample),
        alpha_(output > 1 ? rounded<T>(rounded<T>(V(input - kernel)) / rounded<T>(V(output - 1))) : V(0)),
        origin_(truncated(rounded<T>(sample * alpha_))),
        last_(output - 1),
        end_(input - kernel) {}

  FT_INLINE int64_t operator()(int64_t window) const {
    const V shifted = rounded<T>(rounded<T>(V(window)) + sample_);
    const int64_t start = truncated(rounded<T>(shifted * alpha_)) - origin_;
    const int64_t inside = start < 0 ? 0 : start > end_ ? end_ : start;
    return window == last_ ? end_ : inside;
  }

 private:
  FT_INLINE static int64_t truncated(V x) { return x > V(-0x1p31) && x < V(0x1p31) ? int64_t(x) : 0; }

  V sample_, alpha_;
  int64_t origin_, last_, end_;
};

struct PoolCall {
  PoolShape shape;
  PoolSamples samples;
  c10::ScalarType dtype;
  Activation act;
  MaskSource random;  // the random stream, used if there are no samples
  void* workspace;    // fractional_max_pool_workspace bytes
};

namespace kernels {

// Bytes of workspace for the backward (gradient), or for the other kernels.
inline const Kernel<int64_t(const PoolShape& shape, bool gradient)> fractional_max_pool_workspace{
    "fractional_max_pool_workspace"};
// y = act(maximum of each window), places = its place in the window.
inline const Kernel<void(const PoolCall& call, const void* x, void* y, void* places)> fractional_max_pool_forward{
    "fractional_max_pool_forward"};
// dx at a position = sum of dy * act'(y) over the windows whose maximum it is, in the order of the windows. y is null
// for the identity.
inline const Kernel<void(const PoolCall& call, const void* dy, const void* y, const void* places, void* dx)>
    fractional_max_pool_backward{"fractional_max_pool_backward"};
// The position in its plane of each window's maximum.
inline const Kernel<void(const PoolCall& call, const void* places, int64_t* indices)> fractional_max_pool_indices{
    "fractional_max_pool_indices"};

}  // namespace kernels
}  // namespace fusedtricks

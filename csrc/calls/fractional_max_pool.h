// What the kernels of fractional max-pooling are given: raw memory, and where the windows begin.
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
  int rank;  // 2 or 3, the pooled dimensions; with 2 the depth is 1
  int64_t batch, channels;
  int64_t input[kDimensions], output[kDimensions], kernel[kDimensions];
  bool channels_last;  // channels innermost, of the input and of what has a window's shape

  FT_INLINE static int64_t product(const int64_t (&sizes)[kDimensions]) { return sizes[0] * sizes[1] * sizes[2]; }

  FT_INLINE int64_t planes() const { return batch * channels; }
  FT_INLINE int64_t positions() const { return product(input); }
  FT_INLINE int64_t windows() const { return product(output); }
  FT_INLINE int64_t places() const { return product(kernel); }

  // Bytes of a window's maximum's place in it, counted in row-major order.
  FT_INLINE int place_bytes() const { return places() <= 1 << 8 ? 1 : places() <= 1 << 16 ? 2 : 4; }

  // Which of a plane's random numbers a dimension takes: stock has width before height in 2d, height before width in
  // 3d. A depth that is not pooled takes none.
  FT_INLINE int sample_of(int dimension) const { return rank == 3 ? dimension : kWidth - dimension; }
};

// The random numbers of the planes: stock's `_random_samples` (batch, channels, rank) of that dtype, or null, and then
// number k of plane n * channels + c is word (n * channels + c) * rank + k of the seed's stream, divided by 2^32.
struct PoolSamples {
  const void* given;
  c10::ScalarType dtype;
};

FT_INLINE double pool_sample(uint32_t word) { return word * 0x1p-32; }

// Where the windows of one dimension begin: window i at floor((i + u) alpha) - floor(u alpha) with the random number u,
// the last one at the end. As in stock, every operation is rounded to T; a window that would leave the input, with u
// outside [0, 1) or by the roundings of a half type, is moved to its border.
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
  MaskSource random;  // the stream that the windows follow from, where there are no samples
  void* workspace;    // of fractional_max_pool_workspace bytes
};

namespace kernels {

// For the gradient, or else for the other two.
inline const Kernel<int64_t(const PoolShape& shape, bool gradient)> fractional_max_pool_workspace{
    "fractional_max_pool_workspace"};
// y = act(maximum of each window), places = where in its window it is.
inline const Kernel<void(const PoolCall& call, const void* x, void* y, void* places)> fractional_max_pool_forward{
    "fractional_max_pool_forward"};
// dx = for each position the sum of dy * act'(y) over the windows whose maximum it is, in their order. y is null for
// the identity.
inline const Kernel<void(const PoolCall& call, const void* dy, const void* y, const void* places, void* dx)>
    fractional_max_pool_backward{"fractional_max_pool_backward"};
// The position in its plane of each window's maximum.
inline const Kernel<void(const PoolCall& call, const void* places, int64_t* indices)> fractional_max_pool_indices{
    "fractional_max_pool_indices"};

}  // namespace kernels
}  // namespace fusedtricks

#include "core/dtypes.h"
#include "cpu/batch_norm/loops.h"

namespace fusedtricks::cpu {

template <class T, class Channels>
DifferentiateSpan<T, Channels> differentiate_span(const Activation& activation) {
  DifferentiateSpan<T, Channels> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) { span = differentiate<T, Channels, decltype(act)>; });
  return span;
}

#define FT_INSTANTIATE(name, T)                                                                          \
  template DifferentiateSpan<T, OneChannel<OpMath<T>>> differentiate_span<T, OneChannel<OpMath<T>>>(     \
      const Activation&);                                                                                \
  template DifferentiateSpan<T, ManyChannels<OpMath<T>>> differentiate_span<T, ManyChannels<OpMath<T>>>( \
      const Activation&);
FT_FOR_EACH_DTYPE(FT_INSTANTIATE)

}  // namespace fusedtricks::cpu

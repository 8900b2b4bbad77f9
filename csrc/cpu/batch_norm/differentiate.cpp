#include "core/dtypes.h"
#include "cpu/batch_norm/loops.h"

namespace fusedtricks::cpu {

template <class T, class Channels>
DifferentiateSpan<T, Channels> differentiate_span(const Activation& activation) {
  DifferentiateSpan<T, Channels> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) { span = differentiate<T, Channels, decltype(act)>; });
  return span;
}

#define FT_INSTANTIATE_SPAN(T, Channels) \
  template DifferentiateSpan<T, Channels> differentiate_span<T, Channels>(const Activation&);
#define FT_INSTANTIATE(name, T)                 \
  FT_INSTANTIATE_SPAN(T, OneChannel<OpMath<T>>) \
  FT_INSTANTIATE_SPAN(T, ManyChannels<OpMath<T>>)
FT_FOR_EACH_DTYPE(FT_INSTANTIATE)

}  // namespace fusedtricks::cpu

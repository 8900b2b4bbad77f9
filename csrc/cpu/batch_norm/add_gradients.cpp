#include "core/dtypes.h"
#include "cpu/batch_norm/loops.h"

namespace fusedtricks::cpu {

template <class T, class Channels>
AddGradientsSpan<T, Channels> add_gradients_span(const Activation& activation) {
  AddGradientsSpan<T, Channels> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) { span = add_gradients<T, Channels, decltype(act)>; });
  return span;
}

#define FT_INSTANTIATE(name, T)                                                                                        \
  template AddGradientsSpan<T, OneChannel<OpMath<T>>> add_gradients_span<T, OneChannel<OpMath<T>>>(const Activation&); \
  template AddGradientsSpan<T, ManyChannels<OpMath<T>>> add_gradients_span<T, ManyChannels<OpMath<T>>>(                \
      const Activation&);
FT_FOR_EACH_DTYPE(FT_INSTANTIATE)

}  // namespace fusedtricks::cpu

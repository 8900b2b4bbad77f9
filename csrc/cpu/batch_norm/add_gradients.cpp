#include "core/dtypes.h"
#include "cpu/batch_norm/loops.h"

namespace fusedtricks::cpu {

template <class T, class Channels>
AddGradientsSpan<T, Channels> add_gradients_span(const Activation& activation) {
  AddGradientsSpan<T, Channels> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) { span = add_gradients<T, Channels, decltype(act)>; });
  return span;
}

#define FT_INSTANTIATE_SPAN(T, Channels) \
  template AddGradientsSpan<T, Channels> add_gradients_span<T, Channels>(const Activation&);
#define FT_INSTANTIATE(name, T)                 \
  FT_INSTANTIATE_SPAN(T, OneChannel<OpMath<T>>) \
  FT_INSTANTIATE_SPAN(T, ManyChannels<OpMath<T>>)
FT_FOR_EACH_DTYPE(FT_INSTANTIATE)

}  // namespace fusedtricks::cpu

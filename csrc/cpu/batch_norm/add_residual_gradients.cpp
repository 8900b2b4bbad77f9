#include "core/dtypes.h"
#include "cpu/batch_norm/loops.h"

namespace fusedtricks::cpu {

template <class T, class Channels>
AddResidualGradientsSpan<T, Channels> add_residual_gradients_span(const Activation& activation, bool streamed) {
  constexpr Write past_caches = Channels::tile_rows == 1 ? Write::kPlain : Write::kStreamed;
  AddResidualGradientsSpan<T, Channels> span = nullptr;
  activation.visit<OpMath<T>>([&](auto act) {
    using Act = decltype(act);
    if constexpr (Act::may_keep_result) {
      span = streamed ? add_residual_gradients<past_caches, T, Channels, Act>
                      : add_residual_gradients<Write::kPlain, T, Channels, Act>;
    }
  });
  return span;
}

#define FT_INSTANTIATE_SPAN(T, Channels) \
  template AddResidualGradientsSpan<T, Channels> add_residual_gradients_span<T, Channels>(const Activation&, bool);
#define FT_INSTANTIATE(name, T)                 \
  FT_INSTANTIATE_SPAN(T, OneChannel<OpMath<T>>) \
  FT_INSTANTIATE_SPAN(T, ManyChannels<OpMath<T>>)
FT_FOR_EACH_DTYPE(FT_INSTANTIATE)

}  // namespace fusedtricks::cpu

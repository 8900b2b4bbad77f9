#include "cpu/batch_norm/normalize_spans.h"

namespace fusedtricks::cpu {

#define FT_INSTANTIATE(name, T) FT_INSTANTIATE_NORMALIZE(T, OneChannel<OpMath<T>>)
FT_FOR_EACH_DTYPE(FT_INSTANTIATE)

}  // namespace fusedtricks::cpu

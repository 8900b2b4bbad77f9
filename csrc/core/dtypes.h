// The element types of tensors, and the way from a dtype known at run time to one of them.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "core/macros.h"

// Expands to _(dtype, T) for each element type. A new one is added here; its conversions in core/scalar.h.
#define FT_FOR_EACH_DTYPE(_) \
  _(Float, float)            \
  _(Double, double)          \
  _(BFloat16, c10::BFloat16) \
  _(Half, c10::Half)

namespace fusedtricks {

#define FT_DTYPE(name, T) c10::ScalarType::name,
constexpr c10::ScalarType kDtypes[] = {FT_FOR_EACH_DTYPE(FT_DTYPE)};
#undef FT_DTYPE

constexpr bool is_supported(c10::ScalarType dtype) {
  for (const c10::ScalarType known : kDtypes) {
    if (known == dtype) return true;
  }
  return false;
}

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) for the element type of a dtype. The operators have checked that it is one of the list.
template <class F>
FT_INLINE void visit_dtype(c10::ScalarType dtype, F&& f) {
#define FT_VISIT(name, T)        \
  case c10::ScalarType::name:    \
    f(::fusedtricks::Type<T>{}); \
    break;
  switch (dtype) {
    FT_FOR_EACH_DTYPE(FT_VISIT)
    default:
      break;
  }
#undef FT_VISIT
}

}  // namespace fusedtricks

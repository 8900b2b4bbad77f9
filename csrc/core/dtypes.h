// From dtypes at run time to types.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace fusedtricks {

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<T>) for the element type; operators have checked that it is one of these.
template <class F>
void visit_dtype(c10::ScalarType dtype, F&& f) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return f(Type<float>{});
    case c10::ScalarType::Double:
      return f(Type<double>{});
    case c10::ScalarType::BFloat16:
      return f(Type<c10::BFloat16>{});
    default:
      return f(Type<c10::Half>{});
  }
}

}  // namespace fusedtricks

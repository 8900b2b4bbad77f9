// Which instruction set this library was compiled for.
#include <torch/library.h>

#define FT_STRING(token) #token
#define FT_NAME(token) FT_STRING(token)

TORCH_LIBRARY_IMPL(fusedtricks, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", [] { return std::string(FT_NAME(FUSEDTRICKS_ISA)); });
}

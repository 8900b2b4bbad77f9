// The one symbol that a kernel library exports: the list of the kernels that its sources provide.
#include "calls/device.h"

#define FT_STRING(token) #token
#define FT_NAME(token) FT_STRING(token)

namespace fusedtricks {
namespace {

const char* compiled_for() { return FT_NAME(FUSEDTRICKS_ISA); }
const Provided provided(kernels::instruction_set, compiled_for);

}  // namespace
}  // namespace fusedtricks

extern "C" __attribute__((visibility("default"))) const std::vector<fusedtricks::NamedFunction>*
fusedtricks_provided_functions() {
  return &fusedtricks::provided_functions();
}

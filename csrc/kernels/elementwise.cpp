#include <pybind11/stl.h>

#include "kernels/lists.h"

#define MSK_SOURCE "kernels/elementwise.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_elementwise(pybind11::module_& m) {
  MSK_DEF(m, unary);
  MSK_DEF(m, zero);
  MSK_DEF(m, binary);
  MSK_DEF(m, binary_broadcast);
  MSK_DEF(m, ternary);
}

}  // namespace mindspeed_ms::kernels

#include <pybind11/stl.h>

#include "kernels/lists.h"

#define MSK_SOURCE "kernels/elementwise.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_elementwise(pybind11::module_& m) {
  MSK_DEF(m, unary, op, xs, ys, sizes, dtype, out_dtype);
  MSK_DEF(m, zero, target, bytes);
  MSK_DEF(m, binary, op, lefts, rights, ys, sizes, alpha, dtype, right_dtype);
  MSK_DEF(m, binary_broadcast, op, left, right, y, rows, cols, kind, alpha, dtype, right_dtype);
  MSK_DEF(m, ternary, divide, xs, firsts, seconds, ys, sizes, value, dtype);
}

}  // namespace mindspeed_ms::kernels

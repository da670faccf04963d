#define MSK_SOURCE "kernels/reduce.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_reduce(pybind11::module_& m) {
  MSK_DEF(m, sum_all, x, y, n, scale, dtype, out_dtype);
  MSK_DEF(m, sum_last, x, y, rows, cols, scale, dtype, out_dtype);
  MSK_DEF(m, sum_first, x, y, rows, cols, scale, dtype, out_dtype);
}

}  // namespace mindspeed_ms::kernels

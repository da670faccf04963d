#define MSK_SOURCE "kernels/norm.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_norm(pybind11::module_& m) {
  MSK_DEF(m, norm_forward, center, x, residual, weight, bias, sum, y, mean, rstd, rows, cols, eps,
          weight_offset, dtype, weight_dtype);
  MSK_DEF(m, norm_backward, center, dy, x, weight, dsum, mean, rstd, dx, dweight, dbias, rows, cols,
          weight_offset, dtype, weight_dtype);
}

}  // namespace mindspeed_ms::kernels

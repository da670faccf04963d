#define MSK_SOURCE "kernels/dropout.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_dropout(pybind11::module_& m) {
  MSK_DEF(m, dropout_add_forward, x, bias, residual, mask, y, rows, cols, scale, dtype);
  MSK_DEF(m, dropout_backward, dy, mask, dx, dbias, rows, cols, scale, dtype);
}

}  // namespace mindspeed_ms::kernels

#define MSK_SOURCE "kernels/activation.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_activation(pybind11::module_& m) {
  MSK_DEF(m, activation_forward, activation, x, bias, y, rows, cols, dtype, bias_dtype);
  MSK_DEF(m, activation_backward, activation, dy, x, bias, dx, dbias, rows, cols, dtype, bias_dtype);
  MSK_DEF(m, glu_forward, activation, x, bias, weights, y, rows, half, linear_offset, clamp, dtype,
          bias_dtype);
  MSK_DEF(m, glu_backward, activation, dy, x, bias, weights, dx, dbias, dweights, rows, half, linear_offset,
          clamp, dtype, bias_dtype);
}

}  // namespace mindspeed_ms::kernels

#define MSK_SOURCE "kernels/rope.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_rope(pybind11::module_& m) {
  MSK_DEF(m, rope, layout, backward, x, y, cos, sin, sequence, batch, heads, channels, rotary, x_sequence,
          x_batch, x_head, y_sequence, y_batch, y_head, table_sequence, table_batch, dtype);
}

}  // namespace mindspeed_ms::kernels

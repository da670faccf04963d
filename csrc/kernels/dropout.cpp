#define MSK_SOURCE "kernels/dropout.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_dropout(pybind11::module_& m) {
  MSK_DEF(m, dropout_add_forward);
  MSK_DEF(m, dropout_backward);
}

}  // namespace mindspeed_ms::kernels

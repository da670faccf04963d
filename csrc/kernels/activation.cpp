#define MSK_SOURCE "kernels/activation.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_activation(pybind11::module_& m) {
  MSK_DEF(m, activation_forward);
  MSK_DEF(m, activation_backward);
  MSK_DEF(m, glu_forward);
  MSK_DEF(m, glu_backward);
}

}  // namespace mindspeed_ms::kernels

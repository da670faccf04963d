#define MSK_SOURCE "kernels/softmax.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_softmax(pybind11::module_& m) {
  MSK_DEF(m, softmax_forward);
  MSK_DEF(m, softmax_backward);
}

}  // namespace mindspeed_ms::kernels

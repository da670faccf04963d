#define MSK_SOURCE "kernels/norm.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_norm(pybind11::module_& m) {
  MSK_DEF(m, norm_forward);
  MSK_DEF(m, norm_backward);
}

}  // namespace mindspeed_ms::kernels

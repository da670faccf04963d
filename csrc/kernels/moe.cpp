#define MSK_SOURCE "kernels/moe.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_moe(pybind11::module_& m) {
  MSK_DEF(m, router_forward);
  MSK_DEF(m, router_backward);
  MSK_DEF(m, moe_rows);
  MSK_DEF(m, gather_rows);
  MSK_DEF(m, combine_rows);
  MSK_DEF(m, dot_rows);
}

}  // namespace mindspeed_ms::kernels

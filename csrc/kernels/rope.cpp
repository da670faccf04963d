#define MSK_SOURCE "kernels/rope.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_rope(pybind11::module_& m) { MSK_DEF(m, rope); }

}  // namespace mindspeed_ms::kernels

#define MSK_SOURCE "kernels/reduce.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_reduce(pybind11::module_& m) {
  MSK_DEF(m, sum_all);
  MSK_DEF(m, sum_last);
  MSK_DEF(m, sum_first);
}

}  // namespace mindspeed_ms::kernels

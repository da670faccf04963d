#include <pybind11/stl.h>

#include "kernels/lists.h"

#define MSK_SOURCE "kernels/optimizer.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_optimizer(pybind11::module_& m) {
  MSK_DEF(m, adam);
  MSK_DEF(m, sgd);
  MSK_DEF(m, scale_and_norm);
}

}  // namespace mindspeed_ms::kernels

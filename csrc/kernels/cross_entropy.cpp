#define MSK_SOURCE "kernels/cross_entropy.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_cross_entropy(pybind11::module_& m) {
  MSK_DEF(m, cross_entropy_max);
  MSK_DEF(m, cross_entropy_sums);
  MSK_DEF(m, cross_entropy_loss);
  MSK_DEF(m, cross_entropy_grad);
}

}  // namespace mindspeed_ms::kernels

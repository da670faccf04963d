#define MSK_SOURCE "kernels/cross_entropy.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_cross_entropy(pybind11::module_& m) {
  MSK_DEF(m, cross_entropy_max, logits, peak, rows, cols, dtype);
  MSK_DEF(m, cross_entropy_sums, logits, peak, target, sums, rows, cols, first, smoothing, whole, dtype);
  MSK_DEF(m, cross_entropy_loss, sums, loss, rows, cols, share);
  MSK_DEF(m, cross_entropy_grad, logits, peak, sum, target, grad, dlogits, rows, cols, first, on, everywhere,
          dtype, out_dtype);
}

}  // namespace mindspeed_ms::kernels

#include <pybind11/stl.h>

#include "kernels/lists.h"

#define MSK_SOURCE "kernels/optimizer.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_optimizer(pybind11::module_& m) {
  MSK_DEF(m, adam, params, grads, exp_avgs, exp_avg_sqs, copies, sizes, grad_dtype, copy_dtype, lr, beta1,
          beta2, eps, weight_decay, correction1, correction2, decoupled, maximize, grad_scale);
  MSK_DEF(m, sgd, params, grads, buffers, copies, sizes, grad_dtype, copy_dtype, lr, momentum, dampening,
          weight_decay, nesterov, first, maximize, grad_scale);
  MSK_DEF(m, scale_and_norm, ins, outs, square_sums, sizes, in_dtype, out_dtype, scale);
}

}  // namespace mindspeed_ms::kernels

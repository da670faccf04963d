#define MSK_SOURCE "kernels/softmax.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_softmax(pybind11::module_& m) {
  MSK_DEF(m, softmax_forward, logarithm, causal, x, mask, y, rows, cols, heads, queries, stride_batch,
          stride_head, stride_query, scale, dtype);
  MSK_DEF(m, softmax_backward, logarithm, dy, y, mask, dx, rows, cols, heads, queries, stride_batch,
          stride_head, stride_query, scale, dtype);
}

}  // namespace mindspeed_ms::kernels

#define MSK_SOURCE "kernels/moe.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_moe(pybind11::module_& m) {
  MSK_DEF(m, router_forward, score, all, logits, bias, probs, chosen, tokens, experts, topk, groups,
          group_topk, scale, dtype);
  MSK_DEF(m, router_backward, score, all, dprobs, logits, chosen, dlogits, tokens, experts, topk, scale,
          dtype);
  MSK_DEF(m, moe_rows, map, token_of_row, expert_of_row, tokens, experts, capacity, limit);
  MSK_DEF(m, gather_rows, x, index, weight, y, rows, cols, x_rows, dtype);
  MSK_DEF(m, combine_rows, x, index, weight, y, rows, cols, y_rows, dtype);
  MSK_DEF(m, dot_rows, a, b, index, dots, rows, cols, b_rows, dtype);
}

}  // namespace mindspeed_ms::kernels

#define MSK_SOURCE "kernels/embedding.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {

void bind_embedding(pybind11::module_& m) {
  MSK_DEF(m, embedding_backward, grad, ids, row_scale, table, rows, cols, table_rows, skip, accumulate, dtype,
          table_dtype);
}

}  // namespace mindspeed_ms::kernels

#pragma once
#include "kernels/dispatch.h"

// Files of kernels: `X(name)` has `bind_name` of kernels/name.cpp add its functions to `_native.kernels`.
#define MSK_FILES(X) \
  X(activation)      \
  X(cross_entropy)   \
  X(norm)            \
  X(strided_copy)    \
  X(reduce)          \
  X(optimizer)       \
  X(embedding)       \
  X(elementwise)     \
  X(dropout)         \
  X(rope)            \
  X(softmax)         \
  X(attention)       \
  X(gemm)            \
  X(moe)

namespace mindspeed_ms::kernels {

#define MSK_DECLARE(name) void bind_##name(pybind11::module_& m);
MSK_FILES(MSK_DECLARE)
#undef MSK_DECLARE

}  // namespace mindspeed_ms::kernels

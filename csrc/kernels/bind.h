#pragma once
#include "kernels/dispatch.h"

// Each kernel file adds its functions to `_native.kernels`.
namespace mindspeed_ms::kernels {

void bind_norm(pybind11::module_& m);

}  // namespace mindspeed_ms::kernels

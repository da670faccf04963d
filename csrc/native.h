#pragma once
#include <pybind11/pybind11.h>

namespace mindspeed_ms {

// Each folder of extension 2 adds its functions to the submodule named after it.
void bind_kernels(pybind11::module_& m);
void bind_comm(pybind11::module_& m);

}  // namespace mindspeed_ms

#pragma once
#include <pybind11/pybind11.h>

namespace mindspeed_ms {

// Adds lower(...), allow_on_host(...) and the MindSpore lock to the extension's module.
void bind_lowerings(pybind11::module_& m);

}  // namespace mindspeed_ms

#pragma once
#include <pybind11/pybind11.h>

namespace mindspeed_ms {

// Adds lower(...), allow_on_host(...) and the MindSpore lock to the extension's module.
void bind_lowerings(pybind11::module_& m);

// Calls `form`, a function of MindSpore tensors, on the memory of npu tensors, those in lists, too; its
// results are npu tensors of their own. Needs the GIL.
pybind11::object on_mindspore(const pybind11::object& form, const pybind11::args& args);

}  // namespace mindspeed_ms

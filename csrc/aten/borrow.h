#pragma once
#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

namespace mindspeed_ms {

// Installs what the borrowing needs of MindSpore: TensorPy.from_dlpack, Tensor.from_numpy and the dtype
// objects, as {ms dtype: torch scalar type number}. What to call when MindSpore is needed for the first time;
// it ends in set_mindspore().
void set_mindspore_starter(pybind11::object start);
void set_mindspore(pybind11::object from_dlpack, pybind11::object from_numpy, pybind11::dict dtypes);

// ms.Tensor over the memory of npu tensor `t`, no copy. Needs the GIL.
pybind11::object lend_to_mindspore(const at::Tensor& t);

// npu tensor over the memory of ms.Tensor `result`; copies only if the result is not contiguous. Needs the
// GIL.
at::Tensor adopt_from_mindspore(pybind11::handle result, c10::DeviceIndex device);

// Whether a result is the very ms.Tensor that was lent, in `args` or a list there. Opaque memory has no
// addresses to compare without waiting for MindSpore. (A form must not end in a view of an argument.)
bool was_lent(pybind11::handle result, const pybind11::tuple& args);

// ms.Tensor over the memory of a CPU tensor, no copy. Needs the GIL.
pybind11::object lend_host(const at::Tensor& cpu);

// MindSpore's dtype object for a torch dtype (borrowed), nullptr if it has none.
PyObject* mindspore_dtype(at::ScalarType dtype);

// torch scalar type of an ms.Tensor's dtype.
at::ScalarType scalar_type_of(pybind11::handle ms_dtype);

}  // namespace mindspeed_ms

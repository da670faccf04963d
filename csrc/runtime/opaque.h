#pragma once
#include "runtime/memory.h"

namespace mindspeed_ms {

// Opaque memory is read and written only through these Python callables (bridge/device/opaque.py), which use
// nothing but ms.Tensor operations.
struct OpaqueHooks {
  PyObject* to_host = nullptr;    // (flat) -> contiguous CPU torch tensor of the same elements
  PyObject* from_host = nullptr;  // (contiguous CPU torch tensor) -> flat ms.Tensor
  PyObject* view = nullptr;       // (flat, size, stride, offset) -> ms.Tensor sharing flat's memory
  PyObject* write = nullptr;      // (flat, size, stride, offset, source ms.Tensor) -> None
  PyObject* flatten = nullptr;    // (ms.Tensor) -> flat contiguous ms.Tensor of its elements
};
OpaqueHooks& opaque_hooks();

// Copy of npu tensor `t` as a CPU tensor with the same sizes.
at::Tensor opaque_to_host(const at::Tensor& t);
// New npu tensor holding a copy of CPU tensor `t`.
at::Tensor opaque_from_host(const at::Tensor& t, c10::DeviceIndex device);
// Writes CPU tensor `source` (same sizes) into npu tensor `t`, through t's strides.
void opaque_write_host(const at::Tensor& t, const at::Tensor& source);
// ms.Tensor view of `t` (new reference). Needs the GIL.
PyObject* opaque_lend(const at::Tensor& t);
// Writes ms.Tensor `source` (same sizes and dtype) into `t`. Needs the GIL.
void opaque_write(const at::Tensor& t, PyObject* source);
// New npu tensor that takes over ms.Tensor `result`. Needs the GIL.
at::Tensor opaque_adopt(PyObject* result, at::IntArrayRef sizes, at::ScalarType dtype,
                        c10::DeviceIndex device);

c10::DataPtr resize_opaque(OpaqueMemory& old, size_t old_nbytes, size_t nbytes, c10::DeviceIndex device);

}  // namespace mindspeed_ms

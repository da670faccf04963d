#pragma once
#include "runtime/memory.h"

namespace mindspeed_ms {

// Opaque memory is reached only through these Python callables (bridge/device/opaque.py), which use nothing
// but operators of ms.Tensor. All of them run on the device in the order of its stream, but for `to_host`.
struct OpaqueHooks {
  PyObject* allocate = nullptr;     // (sizes, ms dtype) -> ms.Tensor on the device, its contents any
  PyObject* view = nullptr;         // (ms.Tensor, size, stride, offset) -> ms.Tensor over the same memory
  PyObject* reshape = nullptr;      // (contiguous ms.Tensor, size) -> the same, of as many elements
  PyObject* retype = nullptr;       // (ms.Tensor, elements, ms dtype) -> flat ms.Tensor over the same memory
  PyObject* copy = nullptr;         // (view, source ms.Tensor on the device): casts and broadcasts
  PyObject* cast = nullptr;         // (contiguous view, ms dtype) -> ms.Tensor of its own
  PyObject* clone = nullptr;        // (view) -> contiguous ms.Tensor of its own
  PyObject* fill = nullptr;         // (view, number)
  PyObject* settle = nullptr;       // (result) -> copy on the device, contiguous from the start of its memory
  PyObject* write_host = nullptr;   // (contiguous view, ms.Tensor on the host, same dtype and size)
  PyObject* send = nullptr;         // (contiguous ms.Tensor on the host) -> ms.Tensor on the device
  PyObject* to_host = nullptr;      // (view) -> contiguous CPU torch tensor of its elements
  PyObject* pin = nullptr;          // (bytes) -> ms.Tensor over pinned host memory
  PyObject* synchronize = nullptr;  // () -> None, when all streams of the device have done their work
};
OpaqueHooks& opaque_hooks();

// Copy of npu tensor `t` as a CPU tensor of the same sizes, and of the same strides where `t` is dense. Only
// the elements of `t` cross the bus.
at::Tensor opaque_to_host(const at::Tensor& t);
// New npu tensor holding a copy of CPU tensor `t`.
at::Tensor opaque_from_host(const at::Tensor& t, c10::DeviceIndex device);
// Writes CPU tensor `source` (same sizes and dtype) into npu tensor `t`, through t's strides. Only the bytes
// of `source` cross the bus. `in_place`: its memory is read later, too, and stays as it is until then
// (non_blocking copies from pinned memory); else it is copied first.
void opaque_write_host(const at::Tensor& t, const at::Tensor& source, bool in_place = false);
// Copies between npu tensors of equal sizes on the device, with a cast; false if MindSpore has no type for
// one of the dtypes and they differ.
bool opaque_copy(const at::Tensor& t, const at::Tensor& source);
// A copy of `t` in `dtype`, contiguous; none if MindSpore has no type for one of them. What is cast is
// contiguous.
std::optional<at::Tensor> opaque_copied(const at::Tensor& t, at::ScalarType dtype);
// Fills `t`; false if MindSpore has no type for its dtype.
bool opaque_fill(const at::Tensor& t, const c10::Scalar& value);
// ms.Tensor view of `t` (new reference). Needs the GIL.
PyObject* opaque_lend(const at::Tensor& t);
// Writes ms.Tensor `source` (same sizes) into `t`, with a cast. Needs the GIL.
void opaque_write(const at::Tensor& t, PyObject* source);
// New npu tensor that takes over ms.Tensor `result`. Needs the GIL.
at::Tensor opaque_adopt(PyObject* result, at::IntArrayRef sizes, at::ScalarType dtype,
                        c10::DeviceIndex device);

c10::DataPtr resize_opaque(OpaqueMemory& old, size_t old_nbytes, size_t nbytes, c10::DeviceIndex device);

// Pinned host memory, and the object that owns it (new reference).
void* pin_host(size_t nbytes, PyObject** owner);

// Waits for all streams of the device.
void opaque_synchronize();

}  // namespace mindspeed_ms

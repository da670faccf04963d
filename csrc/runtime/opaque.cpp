#include "runtime/opaque.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

namespace py = pybind11;

namespace mindspeed_ms {
namespace {

py::object call(PyObject* fn, py::args args) {
  TORCH_CHECK(fn, "opaque npu memory was used before its hooks were installed (mindspeed_ms.device.opaque).");
  return py::reinterpret_borrow<py::object>(fn)(*args);
}

at::Tensor to_torch(const py::object& o) { return py::cast<at::Tensor>(o); }

OpaqueMemory& opaque_memory_of(const c10::StorageImpl& storage) {
  return static_cast<OpaqueMemory&>(memory_of(storage));
}

// Bytes of `memory` as a CPU tensor of `dtype`, of which the storage holds nbytes / itemsize elements.
at::Tensor bytes_on_host(OpaqueMemory& memory, at::ScalarType dtype, size_t nbytes) {
  const auto options = at::TensorOptions().dtype(dtype);
  const int64_t numel = static_cast<int64_t>(nbytes / at::elementSize(dtype));
  if (!memory.flat) return at::zeros({numel}, options);
  auto host = to_torch(call(opaque_hooks().to_host, py::make_tuple(py::handle(memory.flat))));
  if (memory.dtype == dtype) return host;
  auto out = at::zeros({numel}, options);
  std::memcpy(out.data_ptr(), host.const_data_ptr(), std::min<size_t>(host.nbytes(), out.nbytes()));
  return out;
}

void set_flat(OpaqueMemory& memory, const py::object& flat, at::ScalarType dtype) {
  Py_XDECREF(memory.flat);
  memory.flat = flat.inc_ref().ptr();
  memory.dtype = dtype;
}

// Makes `memory` hold a flat ms.Tensor of `dtype`. MindSpore tensors have one dtype, so a storage that is
// read under another one (Tensor.view(dtype)) is converted through the host.
void require_dtype(OpaqueMemory& memory, at::ScalarType dtype, size_t nbytes) {
  if (memory.flat && memory.dtype == dtype) return;
  set_flat(memory, call(opaque_hooks().from_host, py::make_tuple(bytes_on_host(memory, dtype, nbytes))),
           dtype);
}

template <typename... Args>
py::object with_view(PyObject* hook, const at::Tensor& t, Args&&... extra) {
  auto& storage = *t.storage().unsafeGetStorageImpl();
  auto& memory = opaque_memory_of(storage);
  require_dtype(memory, t.scalar_type(), storage.nbytes());
  auto tuple = [](at::IntArrayRef v) {
    py::tuple out(v.size());
    for (size_t i = 0; i < v.size(); ++i) out[i] = v[i];
    return out;
  };
  return call(hook, py::make_tuple(py::handle(memory.flat), tuple(t.sizes()), tuple(t.strides()),
                                   t.storage_offset(), std::forward<Args>(extra)...));
}

}  // namespace

OpaqueHooks& opaque_hooks() {
  static OpaqueHooks hooks;
  return hooks;
}

at::Tensor opaque_to_host(const at::Tensor& t) {
  py::gil_scoped_acquire gil;
  auto& storage = *t.storage().unsafeGetStorageImpl();
  return bytes_on_host(opaque_memory_of(storage), t.scalar_type(), storage.nbytes())
      .as_strided(t.sizes(), t.strides(), t.storage_offset());
}

at::Tensor opaque_from_host(const at::Tensor& t, c10::DeviceIndex device) {
  auto dense = t.contiguous();
  py::gil_scoped_acquire gil;
  auto flat = call(opaque_hooks().from_host, py::make_tuple(dense.view({-1})));
  return opaque_adopt(flat.ptr(), t.sizes(), t.scalar_type(), device);
}

void opaque_write_host(const at::Tensor& t, const at::Tensor& source) {
  if (t.numel() == 0) return;
  py::gil_scoped_acquire gil;
  auto flat = call(opaque_hooks().from_host, py::make_tuple(source.contiguous().view({-1})));
  with_view(opaque_hooks().write, t, flat);
}

PyObject* opaque_lend(const at::Tensor& t) { return with_view(opaque_hooks().view, t).release().ptr(); }

void opaque_write(const at::Tensor& t, PyObject* source) {
  if (t.numel() == 0) return;
  with_view(opaque_hooks().write, t, py::reinterpret_borrow<py::object>(source));
}

at::Tensor opaque_adopt(PyObject* result, at::IntArrayRef sizes, at::ScalarType dtype,
                        c10::DeviceIndex device) {
  auto flat = call(opaque_hooks().flatten, py::make_tuple(py::handle(result)));
  const size_t nbytes = c10::multiply_integers(sizes) * at::elementSize(dtype);
  auto* memory = new OpaqueMemory(flat.release().ptr(), dtype, nbytes, device);
  c10::Storage storage(c10::Storage::use_byte_size_t(), nbytes, make_data_ptr(memory, device),
                       c10::GetAllocator(kNpu), /*resizable=*/true);
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
                                                      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                                      c10::scalarTypeToTypeMeta(dtype));
  out.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return out;
}

c10::DataPtr resize_opaque(OpaqueMemory& old, size_t old_nbytes, size_t nbytes, c10::DeviceIndex device) {
  auto* fresh = new OpaqueMemory(nullptr, at::ScalarType::Undefined, nbytes, device);
  auto ptr = make_data_ptr(fresh, device);  // owns `fresh` from here on
  if (old.flat && old_nbytes && nbytes) {
    py::gil_scoped_acquire gil;
    auto kept = bytes_on_host(old, old.dtype, old_nbytes);
    auto bytes = at::zeros({static_cast<int64_t>(nbytes / kept.element_size())}, kept.options());
    std::memcpy(bytes.data_ptr(), kept.const_data_ptr(), std::min<size_t>(bytes.nbytes(), kept.nbytes()));
    set_flat(*fresh, call(opaque_hooks().from_host, py::make_tuple(bytes)), old.dtype);
  }
  return ptr;
}

}  // namespace mindspeed_ms

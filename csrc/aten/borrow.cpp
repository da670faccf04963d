#include "aten/borrow.h"

#include <ATen/dlpack.h>
#include <pybind11/numpy.h>

#include <array>
#include <unordered_map>

#include "runtime/opaque.h"

namespace py = pybind11;

namespace mindspeed_ms {
namespace {

struct MindSpore {
  py::object from_dlpack, from_numpy;
  std::unordered_map<PyObject*, at::ScalarType> dtypes;  // keys kept alive by MindSpore: they are singletons
  std::array<PyObject*, static_cast<size_t>(at::ScalarType::NumOptions)> of_torch{};  // the same, reversed
  // Interned names.
  PyObject *data_ptr = nullptr, *dtype = nullptr, *shape = nullptr, *is_contiguous = nullptr,
           *contiguous = nullptr;
};
MindSpore* g_ms = nullptr;

PyObject* g_starter = nullptr;  // owned

// Called with the GIL held. The first time it starts MindSpore, which takes seconds.
MindSpore& mindspore() {
  if (!g_ms && g_starter) py::reinterpret_borrow<py::object>(g_starter)();
  TORCH_CHECK(g_ms, "MindSpore was asked for before the npu device was initialized.");
  return *g_ms;
}

// The DLPack capsule's owner: the sizes, and a reference to the memory.
struct Export {
  DLManagedTensor managed;
  c10::Storage owner;
  c10::SmallVector<int64_t, 10> shape_strides;
};

DLDataType dl_type(at::ScalarType t) {
  auto bits = static_cast<uint8_t>(c10::elementSize(t) * 8);
  if (t == at::kBFloat16) return {kDLBfloat, bits, 1};
  if (c10::isFloatingType(t)) return {kDLFloat, bits, 1};
  if (c10::isComplexType(t)) return {kDLComplex, bits, 1};
  if (c10::isIntegralType(t, false))
    return {static_cast<uint8_t>(t == at::kByte ? kDLUInt : kDLInt), bits, 1};
  TORCH_CHECK_NOT_IMPLEMENTED(false, "MindSpore cannot borrow a tensor of dtype ", t);
}

// `owner`: the storage that keeps t's memory alive.
py::object lend_dlpack(const at::Tensor& t, const c10::Storage& owner) {
  auto owned = std::make_unique<Export>();
  const auto n = t.dim();
  owned->owner = owner;
  owned->shape_strides.append(t.sizes().begin(), t.sizes().end());
  owned->shape_strides.append(t.strides().begin(), t.strides().end());
  auto& dl = owned->managed.dl_tensor;
  dl.data = const_cast<void*>(t.const_data_ptr());
  dl.device = {kDLCPU, 0};
  dl.ndim = static_cast<int32_t>(n);
  dl.dtype = dl_type(t.scalar_type());
  dl.shape = owned->shape_strides.data();
  dl.strides = owned->shape_strides.data() + n;
  dl.byte_offset = 0;
  owned->managed.manager_ctx = owned.get();
  owned->managed.deleter = [](DLManagedTensor* self) { delete static_cast<Export*>(self->manager_ctx); };
  auto* managed = &owned.release()->managed;
  py::capsule capsule(managed, "dltensor", [](PyObject* c) {
    // Still under its first name: MindSpore refused it, so it is ours to free.
    if (PyCapsule_IsValid(c, "dltensor")) {
      auto* m = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(c, "dltensor"));
      m->deleter(m);
    }
  });
  return mindspore().from_dlpack(capsule);
}

// MindSpore refuses bool over DLPack but takes it from numpy, which needs contiguous memory.
py::object lend_bool(const at::Tensor& t, const HostMemory& memory) {
  auto dense = host_alias(t).contiguous();
  auto* owner = new c10::Storage(dense.storage());
  py::capsule base(owner, [](void* p) { delete static_cast<c10::Storage*>(p); });
  py::array array(py::dtype("bool"), std::vector<py::ssize_t>(t.sizes().begin(), t.sizes().end()),
                  const_cast<void*>(dense.const_data_ptr()), base);
  return mindspore().from_numpy(array);
}

}  // namespace

void set_mindspore(py::object from_dlpack, py::object from_numpy, py::dict dtypes) {
  auto* ms = new MindSpore{std::move(from_dlpack), std::move(from_numpy)};
  for (auto [ms_dtype, number] : dtypes) {
    ms_dtype.inc_ref();
    const int scalar_type = py::cast<int>(number);
    ms->dtypes[ms_dtype.ptr()] = static_cast<at::ScalarType>(scalar_type);
    ms->of_torch.at(scalar_type) = ms_dtype.ptr();
  }
  ms->data_ptr = PyUnicode_InternFromString("data_ptr");
  ms->dtype = PyUnicode_InternFromString("dtype");
  ms->shape = PyUnicode_InternFromString("shape");
  ms->is_contiguous = PyUnicode_InternFromString("is_contiguous");
  ms->contiguous = PyUnicode_InternFromString("contiguous");
  delete g_ms;
  g_ms = ms;
}

void set_mindspore_starter(py::object start) {
  Py_XDECREF(g_starter);
  g_starter = start.release().ptr();
}

at::ScalarType scalar_type_of(py::handle ms_dtype) {
  auto it = mindspore().dtypes.find(ms_dtype.ptr());
  TORCH_CHECK_TYPE(it != mindspore().dtypes.end(), "MindSpore dtype ",
                   py::cast<std::string>(py::str(ms_dtype)), " has no torch counterpart.");
  return it->second;
}

py::object lend_host(const at::Tensor& cpu) { return lend_dlpack(cpu, cpu.storage()); }

PyObject* mindspore_dtype(at::ScalarType dtype) { return mindspore().of_torch[static_cast<size_t>(dtype)]; }

py::object lend_to_mindspore(const at::Tensor& t) {
  if (opaque_memory()) return py::reinterpret_steal<py::object>(opaque_lend(t));
  auto& memory = host_memory_of(*t.storage().unsafeGetStorageImpl());
  const bool whole = t.storage_offset() == 0 && t.is_contiguous();
  if (whole && memory.lent && memory.lent_dtype == t.scalar_type() && t.sizes() == memory.lent_sizes) {
    return py::reinterpret_borrow<py::object>(memory.lent);
  }
  auto out = t.scalar_type() == at::kBool ? lend_bool(t, memory) : lend_dlpack(t, memory.cpu());
  if (whole) {
    Py_XDECREF(memory.lent);
    memory.lent = py::object(out).release().ptr();
    memory.lent_dtype = t.scalar_type();
    memory.lent_sizes.assign(t.sizes().begin(), t.sizes().end());
  }
  return out;
}

bool was_lent(py::handle result, const py::tuple& args) {
  for (auto arg : args) {
    if (arg.is(result)) return true;
    if (!PyList_Check(arg.ptr())) continue;
    for (auto item : py::reinterpret_borrow<py::list>(arg))
      if (item.is(result)) return true;
  }
  return false;
}

at::Tensor adopt_from_mindspore(py::handle handle, c10::DeviceIndex device) {
  auto& ms = mindspore();
  auto result = py::reinterpret_borrow<py::object>(handle);
  auto get = [&](PyObject* name) {
    // An operator that failed may say so only here, where its result is looked at.
    auto out = py::reinterpret_steal<py::object>(PyObject_GetAttr(result.ptr(), name));
    if (!out) throw py::error_already_set();
    return out;
  };
  auto invoke = [&](PyObject* name) {
    auto out = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(result.ptr(), name));
    if (!out) throw py::error_already_set();
    return out;
  };
  const auto dtype = scalar_type_of(get(ms.dtype));
  auto shape = get(ms.shape);
  if (!PyTuple_Check(shape.ptr())) throw py::type_error("ms.Tensor.shape is not a tuple");
  c10::SmallVector<int64_t, 5> sizes(PyTuple_GET_SIZE(shape.ptr()));
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i));
  if (opaque_memory()) return opaque_adopt(result.ptr(), sizes, dtype, device);

  if (invoke(ms.is_contiguous).ptr() != Py_True) result = invoke(ms.contiguous);
  void* data = PyLong_AsVoidPtr(invoke(ms.data_ptr).ptr());
  const size_t nbytes = c10::multiply_integers(sizes) * c10::elementSize(dtype);
  // The CPU storage owns a reference to the ms.Tensor, which owns the bytes.
  c10::DataPtr owner(
      data, result.inc_ref().ptr(),
      [](void* object) {
        if (!Py_IsInitialized()) return;
        py::gil_scoped_acquire gil;
        Py_DECREF(static_cast<PyObject*>(object));
      },
      c10::Device(c10::DeviceType::CPU));
  c10::Storage cpu(c10::Storage::use_byte_size_t(), nbytes, std::move(owner), c10::GetAllocator(c10::kCPU),
                   /*resizable=*/true);
  auto out = at::detail::make_tensor<c10::TensorImpl>(adopt_storage(cpu, device),
                                                      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                                      c10::scalarTypeToTypeMeta(dtype));
  out.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  auto& memory = host_memory_of(*out.storage().unsafeGetStorageImpl());
  memory.lent = result.inc_ref().ptr();
  memory.lent_dtype = dtype;
  memory.lent_sizes.assign(sizes.begin(), sizes.end());
  return out;
}

}  // namespace mindspeed_ms

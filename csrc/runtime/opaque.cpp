#include "runtime/opaque.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/view_as_real.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <mutex>

#include "aten/borrow.h"
#include "runtime/bus.h"
#include "runtime/streams.h"

namespace py = pybind11;

namespace mindspeed_ms {
namespace {

template <typename... Args>
py::object call(PyObject* fn, Args&&... args) {
  TORCH_CHECK(fn, "opaque npu memory was used before its hooks were installed (mindspeed_ms.device.opaque).");
  return py::reinterpret_borrow<py::object>(fn)(std::forward<Args>(args)...);
}

py::tuple to_tuple(at::IntArrayRef values) {
  py::tuple out(values.size());
  for (size_t i = 0; i < values.size(); ++i) out[i] = values[i];
  return out;
}

OpaqueMemory& opaque_memory_of(const at::Tensor& t) { return static_cast<OpaqueMemory&>(memory_of(t)); }

at::ScalarType integer_of(at::ScalarType dtype) {
  switch (c10::elementSize(dtype)) {
    case 1:
      return at::kByte;
    case 2:
      return at::kShort;
    case 4:
      return at::kInt;
    case 8:
      return at::kLong;
    default:
      TORCH_CHECK_TYPE(false, dtype, " has no MindSpore counterpart.");
  }
}

// The dtype under which elements are moved: integers of the same width where MindSpore has no such type.
at::ScalarType carrier(at::ScalarType dtype) { return mindspore_dtype(dtype) ? dtype : integer_of(dtype); }

// The dtype under which they cross the bus: numpy has no bfloat16, and DLPack as MindSpore reads it no bool.
at::ScalarType on_the_bus(at::ScalarType dtype) {
  return dtype == at::kBFloat16 || dtype == at::kBool ? integer_of(dtype) : carrier(dtype);
}

// Makes room on the device, unless there is. `sizes`: as its first user sees it, who needs no view then.
void make_room(OpaqueMemory& memory, at::ScalarType dtype, at::IntArrayRef sizes) {
  if (memory.whole) return;
  memory.whole =
      call(opaque_hooks().allocate, to_tuple(sizes), py::handle(mindspore_dtype(dtype))).release().ptr();
  memory.dtype = dtype;
  memory.numel = c10::multiply_integers(sizes);
  memory.sizes.assign(sizes.begin(), sizes.end());
}

// All of the memory as an ms.Tensor of `dtype`, whatever its shape. Under another dtype (Tensor.view(dtype))
// it is a second ms.Tensor over the same memory.
PyObject* whole_of(OpaqueMemory& memory, at::ScalarType dtype) {
  const size_t itemsize = c10::elementSize(dtype);
  if (!memory.whole)
    make_room(memory, dtype,
              {static_cast<int64_t>(std::max<size_t>((memory.nbytes() + itemsize - 1) / itemsize, 1))});
  if (memory.dtype == dtype) return memory.whole;
  const size_t own = c10::elementSize(memory.dtype);
  if (memory.sizes.empty() && itemsize != own) {
    // MindSpore 2.10 ends the process where it reads a number without dimensions as other elements.
    auto flat = call(opaque_hooks().allocate, py::make_tuple(1), py::handle(mindspore_dtype(memory.dtype)));
    call(opaque_hooks().copy, flat, py::handle(memory.whole));
    memory.drop_views();
    Py_DECREF(memory.whole);
    memory.whole = flat.release().ptr();
    memory.sizes.assign({1});
  }
  if (!memory.retyped || memory.retyped_dtype != dtype) {
    // Elements that fill a whole number of the others.
    const size_t numel = itemsize > own ? memory.numel / (itemsize / own) * (itemsize / own) : memory.numel;
    auto retyped =
        call(opaque_hooks().retype, py::handle(memory.whole), numel, py::handle(mindspore_dtype(dtype)));
    Py_XDECREF(memory.retyped);
    memory.retyped = retyped.release().ptr();
    memory.retyped_dtype = dtype;
  }
  return memory.retyped;
}

py::object new_view(OpaqueMemory& memory, at::ScalarType dtype, at::IntArrayRef sizes,
                    at::IntArrayRef strides, int64_t offset) {
  return call(opaque_hooks().view, py::handle(whole_of(memory, dtype)), to_tuple(sizes), to_tuple(strides),
              offset);
}

// ms.Tensor over `t`'s elements; `dtype`: of the same width as that of `t`.
py::object view_of(const at::Tensor& t, at::ScalarType dtype) {
  // A buffer of all parameters has a view for each; slices that never come again must not pile up.
  constexpr size_t kViews = 1024;
  auto& memory = opaque_memory_of(t);
  const auto sizes = t.sizes(), strides = t.strides();
  const auto offset = t.storage_offset();
  const bool from_start = offset == 0 && t.is_contiguous();
  if (from_start && c10::elementSize(dtype) * t.numel() == memory.nbytes() && t.numel())
    make_room(memory, dtype, sizes);
  if (from_start && memory.dtype == dtype && sizes == memory.sizes)
    return py::reinterpret_borrow<py::object>(memory.whole);
  for (const auto& view : memory.views)
    if (view.is(dtype, sizes, strides, offset)) return py::reinterpret_borrow<py::object>(view.tensor);
  const bool all = from_start && memory.dtype == dtype && static_cast<size_t>(t.numel()) == memory.numel;
  auto made = all ? call(opaque_hooks().reshape, py::handle(memory.whole), to_tuple(sizes))
                  : new_view(memory, dtype, sizes, strides, offset);
  if (memory.views.size() == kViews) memory.drop_views();
  auto& view = memory.views.emplace_back(OpaqueMemory::View{offset, dtype, {}, {}, made.inc_ref().ptr()});
  view.sizes.assign(sizes.begin(), sizes.end());
  view.strides.assign(strides.begin(), strides.end());
  return made;
}

// The same elements in the order in which they lie in memory, if they are dense there.
std::optional<at::Tensor> as_span(const at::Tensor& t) {
  if (!t.is_non_overlapping_and_dense()) return std::nullopt;
  return t.as_strided({t.numel()}, {1}, t.storage_offset());
}

// Host memory that the device may still be reading. Waiting for the device empties it; so does reaching a
// limit, by waiting. A copy to the host waits for its own stream: enough where there is no other.
struct Staging {
  static constexpr size_t kLimit = size_t{64} << 20;
  std::mutex mutex;
  std::vector<at::Tensor> tensors;
  size_t nbytes = 0;
};
Staging& staging() {
  static auto* instance = new Staging;
  return *instance;
}

void keep(const at::Tensor& host) {
  auto& s = staging();
  std::lock_guard<std::mutex> lock(s.mutex);
  s.tensors.push_back(host);
  s.nbytes += host.nbytes();
}

// After what is read later: a limit is kept by waiting.
void keep_while_read(const at::Tensor& source, size_t nbytes) {
  count_to_device(nbytes);
  keep(source);
  if (staging().nbytes > Staging::kLimit) opaque_synchronize();
}

void write_span(const at::Tensor& span, const at::Tensor& host) {
  at::Tensor source;
  py::object target;
  if (host.is_complex()) {  // DLPack as MindSpore reads it has none: pairs of real numbers
    source = at::view_as_real(host).view({-1});
    target = new_view(opaque_memory_of(span), source.scalar_type(), {source.numel()}, {1},
                      2 * span.storage_offset());
  } else {
    const auto dtype = on_the_bus(host.scalar_type());
    source = host.scalar_type() == dtype ? host : host.view(dtype);
    target = view_of(span, dtype);
  }
  call(opaque_hooks().write_host, target, lend_host(source));
  keep_while_read(source, host.nbytes());
}

// What is sent becomes the memory of `t`, which has none yet.
bool send_whole(const at::Tensor& t, const at::Tensor& source, bool in_place) {
  auto& memory = opaque_memory_of(t);
  const auto dtype = t.scalar_type();
  if (memory.whole || t.storage_offset() || !t.is_contiguous() || t.nbytes() != memory.nbytes() ||
      t.is_complex() || on_the_bus(dtype) != dtype)
    return false;
  const auto host = in_place && source.is_contiguous() ? source : source.clone(at::MemoryFormat::Contiguous);
  memory.whole = call(opaque_hooks().send, lend_host(host)).release().ptr();
  memory.dtype = dtype;
  memory.numel = t.numel();
  memory.sizes.assign(t.sizes().begin(), t.sizes().end());
  keep_while_read(host, host.nbytes());
  return true;
}

void release_staging() {
  auto& s = staging();
  std::lock_guard<std::mutex> lock(s.mutex);
  s.tensors.clear();
  s.nbytes = 0;
}

at::Tensor new_opaque(OpaqueMemory* memory, size_t nbytes, at::IntArrayRef sizes, at::ScalarType dtype,
                      c10::DeviceIndex device) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), nbytes, make_data_ptr(memory, device),
                       c10::GetAllocator(kNpu), /*resizable=*/true);
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
                                                      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                                      c10::scalarTypeToTypeMeta(dtype));
  out.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return out;
}

// Whether an operator's result is on the device, contiguous, and starts where its memory does.
bool is_alone_in_memory(py::handle result) {
  static auto* device = PyUnicode_InternFromString("device");
  static auto* is_contiguous = PyUnicode_InternFromString("is_contiguous");
  static auto* storage_offset = PyUnicode_InternFromString("storage_offset");
  auto taken = [](PyObject* object) {
    if (!object) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(object);
  };
  auto ask = [&](PyObject* name) { return taken(PyObject_CallMethodNoArgs(result.ptr(), name)); };
  const auto where = taken(PyObject_GetAttr(result.ptr(), device));
  return PyUnicode_CompareWithASCIIString(where.ptr(), "CPU") != 0 && ask(is_contiguous).ptr() == Py_True &&
         PyLong_AsLongLong(ask(storage_offset).ptr()) == 0;
}

at::Tensor new_tensor(at::IntArrayRef sizes, at::ScalarType dtype, c10::DeviceIndex device) {
  const size_t nbytes = c10::multiply_integers(sizes) * c10::elementSize(dtype);
  return new_opaque(new OpaqueMemory(nbytes, device), nbytes, sizes, dtype, device);
}

}  // namespace

OpaqueHooks& opaque_hooks() {
  static OpaqueHooks hooks;
  return hooks;
}

void* pin_host(size_t nbytes, PyObject** owner) {
  py::gil_scoped_acquire gil;
  auto tensor = call(opaque_hooks().pin, nbytes);
  auto* data = PyLong_AsVoidPtr(tensor.attr("data_ptr")().ptr());
  *owner = tensor.release().ptr();
  return data;
}

void opaque_synchronize() {
  if (!opaque_hooks().synchronize) return;  // MindSpore has not started
  py::gil_scoped_acquire gil;
  call(opaque_hooks().synchronize);
  count_synchronization();
  release_staging();
}

at::Tensor opaque_to_host(const at::Tensor& t) {
  const auto options = at::TensorOptions().dtype(t.scalar_type());
  if (t.numel() == 0) return at::empty_strided(t.sizes(), t.strides(), options);
  // An expanded tensor has its elements once.
  auto distinct = t;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.stride(d) == 0 && t.size(d) > 1) distinct = distinct.narrow(d, 0, 1);
  const auto span = as_span(distinct);
  py::gil_scoped_acquire gil;
  const auto& seen = span ? *span : distinct;
  // A view of its own: MindSpore keeps what it read with the tensor that was read.
  auto view = new_view(opaque_memory_of(t), on_the_bus(t.scalar_type()), seen.sizes(), seen.strides(),
                       seen.storage_offset());
  auto host = py::cast<at::Tensor>(call(opaque_hooks().to_host, view));
  if (!side_streams_used()) release_staging();
  count_to_host(host.nbytes());
  if (host.scalar_type() != t.scalar_type()) host = host.view(t.scalar_type());
  host = span ? host.as_strided(distinct.sizes(), distinct.strides(), 0) : host.view(distinct.sizes());
  return host.expand(t.sizes());
}

at::Tensor opaque_from_host(const at::Tensor& t, c10::DeviceIndex device) {
  auto out = new_tensor(t.sizes(), t.scalar_type(), device);
  opaque_write_host(out, t);
  return out;
}

void opaque_write_host(const at::Tensor& t, const at::Tensor& source, bool in_place) {
  if (t.numel() == 0) return;
  py::gil_scoped_acquire gil;
  if (send_whole(t, source, in_place)) return;
  if (const auto span = as_span(t)) {
    if (in_place && source.sizes() == t.sizes() && source.strides() == t.strides())
      return write_span(*span, source.as_strided({t.numel()}, {1}, source.storage_offset()));
    auto stage = at::empty({t.numel()}, source.options().pinned_memory(false));
    stage.as_strided(t.sizes(), t.strides(), 0).copy_(source);
    return write_span(*span, stage);
  }
  opaque_copy(t, opaque_from_host(source, t.device().index()));
}

bool opaque_copy(const at::Tensor& t, const at::Tensor& source) {
  if (t.numel() == 0) return true;
  const auto to = t.scalar_type(), from = source.scalar_type();
  if (to != from && !(mindspore_dtype(to) && mindspore_dtype(from))) return false;
  py::gil_scoped_acquire gil;
  call(opaque_hooks().copy, view_of(t, carrier(to)), view_of(source, carrier(from)));
  return true;
}

std::optional<at::Tensor> opaque_copied(const at::Tensor& t, at::ScalarType dtype) {
  const auto from = t.scalar_type();
  if (!mindspore_dtype(dtype) || !mindspore_dtype(from)) return std::nullopt;
  py::gil_scoped_acquire gil;
  auto view = view_of(t, from);
  const auto result = from == dtype ? call(opaque_hooks().clone, view)
                                    : call(opaque_hooks().cast, view, py::handle(mindspore_dtype(dtype)));
  return opaque_adopt(result.ptr(), t.sizes(), dtype, t.device().index());
}

bool opaque_fill(const at::Tensor& t, const c10::Scalar& value) {
  if (t.numel() == 0) return true;
  if (!mindspore_dtype(t.scalar_type()) || c10::isComplexType(t.scalar_type())) return false;
  // MindSpore hands a Python float on in single precision.
  if (t.scalar_type() == at::kDouble && static_cast<float>(value.toDouble()) != value.toDouble())
    return false;
  // What does not fit is an error that torch words.
  AT_DISPATCH_ALL_TYPES_AND3(at::kHalf, at::kBFloat16, at::kBool, t.scalar_type(), "fill_",
                             [&] { value.to<scalar_t>(); });
  py::gil_scoped_acquire gil;
  py::object number = c10::isFloatingType(t.scalar_type()) ? py::object(py::float_(value.toDouble()))
                      : t.scalar_type() == at::kBool       ? py::object(py::bool_(value.toBool()))
                                                           : py::object(py::int_(value.toLong()));
  call(opaque_hooks().fill, view_of(t, t.scalar_type()), number);
  return true;
}

PyObject* opaque_lend(const at::Tensor& t) {
  TORCH_CHECK_TYPE(mindspore_dtype(t.scalar_type()), t.scalar_type(), " has no MindSpore counterpart.");
  return view_of(t, t.scalar_type()).release().ptr();
}

void opaque_write(const at::Tensor& t, PyObject* source) {
  if (t.numel() == 0) return;
  call(opaque_hooks().copy, view_of(t, carrier(t.scalar_type())), py::handle(source));
}

at::Tensor opaque_adopt(PyObject* result, at::IntArrayRef sizes, at::ScalarType dtype,
                        c10::DeviceIndex device) {
  auto whole = is_alone_in_memory(result) ? py::reinterpret_borrow<py::object>(result)
                                          : call(opaque_hooks().settle, py::handle(result));
  const size_t numel = c10::multiply_integers(sizes);
  auto* memory = new OpaqueMemory(numel * c10::elementSize(dtype), device);
  memory->whole = whole.release().ptr();
  memory->dtype = dtype;
  memory->numel = numel;
  memory->sizes.assign(sizes.begin(), sizes.end());
  return new_opaque(memory, memory->nbytes(), sizes, dtype, device);
}

c10::DataPtr resize_opaque(OpaqueMemory& old, size_t old_nbytes, size_t nbytes, c10::DeviceIndex device) {
  auto fresh = make_data_ptr(new OpaqueMemory(nbytes, device), device);
  const auto kept = static_cast<int64_t>(std::min(old_nbytes, nbytes));
  if (!old.whole || !kept) return fresh;
  py::gil_scoped_acquire gil;
  auto bytes = [&](OpaqueMemory& memory) { return new_view(memory, at::kByte, {kept}, {1}, 0); };
  call(opaque_hooks().copy, bytes(*static_cast<OpaqueMemory*>(fresh.get_context())), bytes(old));
  return fresh;
}

}  // namespace mindspeed_ms

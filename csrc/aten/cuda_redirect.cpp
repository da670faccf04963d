// CUDA names land on npu inside the dispatcher: an operator asked for device "cuda" reaches the CUDA key,
// where its Device arguments are rewritten and it is dispatched again. No Python wrapper, no cost for other
// calls. The devices of both names compare equal.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/to_native.h>
#include <c10/util/Exception.h>
#include <torch/csrc/Device.h>
#include <torch/library.h>

#include "aten/host_route.h"
#include "aten/op_info.h"
#include "runtime/device.h"

namespace mindspeed_ms {
namespace {

c10::Device to_npu(c10::Device d) { return d.is_cuda() ? c10::Device(kNpu, d.index()) : d; }

void redirect(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& info = op_info(op);
  const size_t begin = stack->size() - info.args.size();
  bool rewritten = false;
  for (size_t i = 0; i < info.args.size(); ++i) {
    auto& value = (*stack)[begin + i];
    if (info.args[i].kind != ArgKind::Device || !value.isDevice() || !value.toDevice().is_cuda()) continue;
    value = to_npu(value.toDevice());
    rewritten = true;
  }
  TORCH_CHECK(rewritten, info.name,
              ": a real CUDA tensor reached an operator, but mindspeed_ms redirects device "
              "'cuda' to 'npu'; create tensors after `import mindspeed_ms.patch`.");
  op.callBoxed(stack);
}

// `npu_tensor.to("cuda")` must be the tensor itself, not a copy, so `to` sees the rewritten device.
at::Tensor to_layout(const at::Tensor& self, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout> layout, std::optional<at::Device> device,
                     std::optional<bool> pin_memory, bool non_blocking, bool copy,
                     std::optional<at::MemoryFormat> format) {
  if (device) device = to_npu(*device);
  return at::native::to(self, dtype, layout, device, pin_memory, non_blocking, copy, format);
}

at::Tensor to_device(const at::Tensor& self, at::Device device, at::ScalarType dtype, bool non_blocking,
                     bool copy, std::optional<at::MemoryFormat> format) {
  return at::native::to(self, to_npu(device), dtype, non_blocking, copy, format);
}

void register_to(torch::Library& m) {
  m.impl("to.dtype_layout", TORCH_FN(to_layout));
  m.impl("to.device", TORCH_FN(to_device));
}

// A CUDA build of torch has kernels of its own on the keys of CUDA, which the fallbacks would leave in place.
template <auto* kernel>
void override_kernels(c10::DispatchKey key) {
  static auto* handles = new std::vector<c10::RegistrationHandleRAII>;
  struct Silent final : c10::WarningHandler {
    void process(const c10::Warning&) override {}  // that kernels are overridden, which is the purpose
  } silent;
  c10::WarningUtils::WarningHandlerGuard guard(&silent);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    auto op = dispatcher.findSchema(name);
    if (!op || !op->hasKernelForDispatchKey(key)) continue;
    handles->push_back(dispatcher.registerImpl(name, key,
                                               c10::KernelFunction::makeFromBoxedFunction<kernel>(),
                                               std::nullopt, nullptr, "mindspeed_ms CUDA redirect"));
  }
}

// A script compares the device it asked for with the one that its tensor is on, or looks tensors up by it:
// cuda:0 and npu:0 are one device, and so one key.
richcmpfunc torch_compare = nullptr;

PyObject* compare(PyObject* a, PyObject* b, int op) {
  if (!THPDevice_Check(a) || !THPDevice_Check(b) || (op != Py_EQ && op != Py_NE)) {
    return torch_compare(a, b, op);
  }
  const auto device = [](PyObject* x) { return to_npu(reinterpret_cast<THPDevice*>(x)->device); };
  return PyBool_FromLong((device(a) == device(b)) == (op == Py_EQ));
}

Py_hash_t hash(PyObject* self) {
  const auto device = to_npu(reinterpret_cast<THPDevice*>(self)->device);
  return static_cast<Py_hash_t>(std::hash<c10::Device>{}(device) % PY_SSIZE_T_MAX);
}

void equate_devices() {
  torch_compare = THPDeviceType.tp_richcompare;
  THPDeviceType.tp_richcompare = &compare;
  THPDeviceType.tp_hash = &hash;
  PyType_Modified(&THPDeviceType);
}

}  // namespace

// Arms the redirection; kept apart from module load so that importing the package changes nothing for CUDA.
void register_cuda_redirect() {
  static auto* libraries = new std::vector<torch::Library>;
  if (!libraries->empty()) return;
  libraries->emplace_back(torch::Library::IMPL, "_", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  libraries->back().fallback(torch::CppFunction::makeFromBoxedFunction<&redirect>());
  for (auto key : {c10::DispatchKey::PrivateUse1, c10::DispatchKey::AutogradPrivateUse1}) {
    libraries->emplace_back(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
    register_to(libraries->back());
  }
  override_kernels<&redirect>(c10::DispatchKey::CUDA);
  override_kernels<&refuse_sparse>(c10::DispatchKey::SparseCUDA);
  override_kernels<&refuse_sparse>(c10::DispatchKey::SparseCsrCUDA);
  equate_devices();
}

}  // namespace mindspeed_ms

// Copies, casts, fills and reads of one number. On host memory torch's CPU kernels make them; opaque memory
// is copied and filled on the device, and only what comes from the host or goes there crosses the bus. Clones
// and conversions that MindSpore makes by one operator are; others are torch's composites of these.
#include <ATen/ExpandUtils.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_to_copy_native.h>
#include <ATen/ops/clone_native.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "aten/host_route.h"
#include "aten/op_info.h"
#include "runtime/bus.h"
#include "runtime/opaque.h"

namespace mindspeed_ms {
namespace {

using Stack = torch::jit::Stack;

bool is_npu(const at::Tensor& t) { return t.device().type() == kNpu; }
bool is_plain(const at::Tensor& t) { return t.layout() == at::kStrided && !t.is_conj() && !t.is_neg(); }

// Before the bus, as it narrows elements; after it, as it widens them. Numbers are the same either way.
at::Tensor narrowed(const at::Tensor& source, at::ScalarType dtype) {
  return c10::elementSize(dtype) < source.element_size() ? source.to(dtype) : source;
}

void to_device(const at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  if (source.scalar_type() == self.scalar_type() && source.sizes() == self.sizes())
    return opaque_write_host(self, source, non_blocking && source.is_pinned());
  auto sent = opaque_from_host(narrowed(source, self.scalar_type()), self.device().index());
  if (!opaque_copy(self, sent.expand(self.sizes())))
    opaque_write_host(self, source.to(self.scalar_type()).expand(self.sizes()));
}

void within_device(const at::Tensor& self, const at::Tensor& source) {
  at::assert_no_internal_overlap(self);
  at::assert_no_partial_overlap(self, source);
  if (opaque_copy(self, source)) return;
  opaque_write_host(self, opaque_to_host(source).to(self.scalar_type()));
}

void copy_(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  ensure_initialized();
  const auto& info = op_info(op);
  const auto self = (*stack)[stack->size() - 3].toTensor();
  const auto source = (*stack)[stack->size() - 2].toTensor();
  const bool non_blocking = (*stack)[stack->size() - 1].toBool();
  if (!is_plain(self) || !is_plain(source)) return host_fallback(op, keys, stack);
  TORCH_CHECK(self.dim() >= source.dim() || source.numel() == 1, "output with shape ", self.sizes(),
              " doesn't match the broadcast shape ", source.sizes());
  if (!self.is_same(source) && self.numel()) {
    BusCause cause(info.name);
    Timed timed(info.counters, Route::MindSpore, self.scalar_type(), kFirstChoice);
    if (!is_npu(self)) {
      self.copy_(opaque_to_host(source));
    } else if (!is_npu(source)) {
      to_device(self, source, non_blocking);
    } else {
      const auto seen = source.dim() > self.dim() ? source.reshape({}) : source;
      within_device(self, seen.expand(self.sizes()));
    }
  }
  torch::jit::drop(*stack, 3);
  stack->emplace_back(self);
}

// A copy of `self` in `dtype` by one operator, which makes its memory too; none where it takes more. torch's
// rule of strides holds: a dense tensor's are kept, unless contiguous memory is asked for.
std::optional<at::Tensor> copied(const at::Tensor& self, at::ScalarType dtype,
                                 std::optional<at::MemoryFormat> asked) {
  const auto format = asked.value_or(at::MemoryFormat::Preserve);
  if ((format != at::MemoryFormat::Preserve && format != at::MemoryFormat::Contiguous) || !is_npu(self) ||
      !is_plain(self) || !self.numel())
    return std::nullopt;
  const bool keeps = format == at::MemoryFormat::Preserve && self.is_non_overlapping_and_dense();
  const bool reorders = !self.is_contiguous() && !keeps;
  // What MindSpore casts it makes contiguous first, in an operator of its own.
  if (reorders && dtype != self.scalar_type()) return std::nullopt;
  if (reorders && format == at::MemoryFormat::Preserve &&
      !c10::is_contiguous_strides(self.sizes(), at::infer_dense_strides(self.sizes(), self.strides())))
    return std::nullopt;
  static auto& counters = counters_of("aten::copy_");  // as torch's composite is counted, which ends there
  Timed timed(counters, Route::MindSpore, dtype, kFirstChoice);
  const bool flat = keeps && !self.is_contiguous();
  auto out = opaque_copied(flat ? self.as_strided({self.numel()}, {1}, self.storage_offset()) : self, dtype);
  if (!out) timed.cancel();
  if (out && flat) out->unsafeGetTensorImpl()->set_sizes_and_strides(self.sizes(), self.strides());
  return out;
}

at::Tensor clone(const at::Tensor& self, std::optional<at::MemoryFormat> format) {
  ensure_initialized();
  if (auto out = copied(self, self.scalar_type(), format)) return *out;
  return at::native::clone(self, format);
}

at::Tensor to_copy(const at::Tensor& self, std::optional<at::ScalarType> dtype,
                   std::optional<at::Layout> layout, std::optional<at::Device> device,
                   std::optional<bool> pin_memory, bool non_blocking,
                   std::optional<at::MemoryFormat> format) {
  ensure_initialized();
  const bool stays = device.value_or(self.device()) == self.device() && !pin_memory.value_or(false) &&
                     layout.value_or(at::kStrided) == at::kStrided;
  if (stays)
    if (auto out = copied(self, dtype.value_or(self.scalar_type()), format)) return *out;
  return at::native::_to_copy(self, dtype, layout, device, pin_memory, non_blocking, format);
}

void fill(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack, size_t arguments) {
  ensure_initialized();
  const auto& info = op_info(op);
  const auto self = (*stack)[stack->size() - arguments].toTensor();
  if (!is_plain(self)) return host_fallback(op, keys, stack);
  at::assert_no_internal_overlap(self);
  {
    BusCause cause(info.name);
    c10::Scalar value = 0;
    if (arguments == 2) {
      const auto& given = stack->back();
      if (given.isTensor()) {
        TORCH_CHECK(given.toTensor().dim() == 0,
                    "fill_ only supports 0-dimension value tensor but got tensor with ",
                    given.toTensor().dim(), " dimensions.");
        if (is_npu(given.toTensor())) {
          self.copy_(given.toTensor());
          torch::jit::drop(*stack, 1);
          return;
        }
        value = given.toTensor().item();
      } else {
        value = given.toScalar();
      }
    }
    Timed timed(info.counters, Route::MindSpore, self.scalar_type(), kFirstChoice);
    if (!opaque_fill(self, value)) {
      timed.cancel();
      return host_fallback(op, keys, stack);
    }
  }
  torch::jit::drop(*stack, arguments);
  stack->emplace_back(self);
}

void fill_(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  fill(op, keys, stack, 2);
}
void zero_(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  fill(op, keys, stack, 1);
}

void local_scalar_dense(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  ensure_initialized();
  const auto& info = op_info(op);
  const auto self = stack->back().toTensor();
  BusCause cause(info.name);
  Timed timed(info.counters, Route::MindSpore, self.scalar_type(), kFirstChoice);
  auto number = opaque_to_host(self);
  if (self.is_conj()) number = number.conj();
  if (self.is_neg()) number = number.neg();
  stack->back() = number.item();
}

}  // namespace

// After the kind of memory is known. torch's composite copy_ knows its own devices only.
void register_copies() {
  static auto* libraries = new std::vector<torch::Library>;
  if (!libraries->empty()) return;
  auto& m = libraries->emplace_back(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__,
                                    __LINE__);
  if (!opaque_memory()) {
    m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&host_fallback>());
    return;
  }
  m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&copy_>());
  m.impl("clone", TORCH_FN(clone));
  m.impl("_to_copy", TORCH_FN(to_copy));
  m.impl("fill_.Scalar", torch::CppFunction::makeFromBoxedFunction<&fill_>());
  m.impl("fill_.Tensor", torch::CppFunction::makeFromBoxedFunction<&fill_>());
  m.impl("zero_", torch::CppFunction::makeFromBoxedFunction<&zero_>());
  m.impl("_local_scalar_dense", torch::CppFunction::makeFromBoxedFunction<&local_scalar_dense>());
}

}  // namespace mindspeed_ms

#include "aten/host_route.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <mutex>
#include <optional>

#include "aten/op_info.h"
#include "aten/routes.h"
#include "runtime/bus.h"
#include "runtime/generator.h"
#include "runtime/opaque.h"

namespace mindspeed_ms {
namespace {

// One npu argument and the CPU tensor that stands for it during the call.
struct Lent {
  at::Tensor npu;
  at::Tensor cpu;
  bool written;
};

// Some random operators take no generator (native_dropout): their CPU kernels draw from torch's default CPU
// generator. For the call it takes the state of npu's generator, so that seeds and saved states of npu hold.
class DefaultGeneratorSwap {
 public:
  explicit DefaultGeneratorSwap(const at::Generator& npu) : npu_(engine_of(npu)) { exchange(); }
  ~DefaultGeneratorSwap() { exchange(); }
  DefaultGeneratorSwap(const DefaultGeneratorSwap&) = delete;

 private:
  void exchange() {
    auto cpu = at::detail::getDefaultCPUGenerator();
    std::scoped_lock lock(npu_.mutex(), cpu.mutex());
    auto* a = npu_.unsafeGetGeneratorImpl();
    auto* b = cpu.unsafeGetGeneratorImpl();
    auto state = a->get_state();
    a->set_state(*b->get_state());
    b->set_state(*state);
  }
  at::Generator npu_;
};

class HostCall {
 public:
  HostCall(const c10::OperatorHandle& op, const OpInfo& info, torch::jit::Stack& stack)
      : op_(op), info_(info), stack_(stack), begin_(stack.size() - info.args.size()) {}

  void run(Reason why) {
    BusCause cause(info_.name);
    find_device();
    for (size_t i = 0; i < info_.args.size(); ++i) lend_argument(stack_[begin_ + i], info_.args[i]);
    {
      std::optional<DefaultGeneratorSwap> swap;
      if (info_.seeded) swap.emplace(default_generator(device_));
      Timed timed(info_.counters, Route::Host, dtype_, why);
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      op_.redispatchBoxed(keys_.empty() ? c10::DispatchKeySet(c10::DispatchKey::CPU) : keys_, &stack_);
    }
    if (info_.writes)
      for (auto& lent : lent_)
        if (lent.written) write_back(lent);
    const size_t returns = op_.schema().returns().size();
    for (size_t i = stack_.size() - returns; i < stack_.size(); ++i) return_value(stack_[i]);
  }

 private:
  void find_device() {
    for (size_t i = begin_; i < stack_.size() && !found_; ++i) {
      auto& value = stack_[i];
      if (value.isTensor()) {
        consider(value.toTensor());
      } else if (value.isTensorList()) {
        for (const at::Tensor& t : value.toTensorVector()) consider(t);
      } else if (value.isOptionalTensorList()) {
        for (const std::optional<at::Tensor>& t : value.toOptionalTensorList())
          if (t) consider(*t);
      } else if (value.isDevice() && value.toDevice().type() == kNpu && value.toDevice().has_index()) {
        device_ = value.toDevice().index();
      }
    }
    if (device_ < 0) device_ = current_device();
  }

  void consider(const at::Tensor& t) {
    if (found_ || !t.defined() || t.device().type() != kNpu) return;
    device_ = t.device().index();
    found_ = true;
  }

  void lend_argument(c10::IValue& value, const ArgInfo& arg) {
    if (value.isTensor()) {
      value = lend(value.toTensor(), arg.written);
    } else if (value.isTensorList()) {
      auto list = value.toTensorVector();
      for (auto& t : list) t = lend(t, arg.written);
      value = c10::List<at::Tensor>(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorList())
        list.push_back(t ? std::optional<at::Tensor>(lend(*t, arg.written)) : std::nullopt);
      value = std::move(list);
    } else if (arg.kind == ArgKind::Device && value.isDevice()) {
      if (value.toDevice().type() == kNpu) value = c10::Device(c10::DeviceType::CPU);
    } else if (arg.kind == ArgKind::Generator) {
      value = engine_of(value.isGenerator() ? value.toGenerator() : default_generator(device_));
    }
  }

  at::Tensor lend(const at::Tensor& t, bool written) {
    if (!t.defined()) return t;
    if (t.device().type() != kNpu) {
      TORCH_CHECK(!found_ || info_.mixes_devices || t.dim() == 0 || t.device().is_meta(),
                  "Expected all tensors to be on the same device, but found at least two devices, npu:",
                  static_cast<int>(device_), " and ", t.device(), "! (when checking arguments of ",
                  info_.name, ")");
      add_keys(t);
      return t;
    }
    // The same tensor given twice must be the same tensor for the kernel, too (out= aliasing an input).
    for (auto& lent : lent_) {
      if (lent.npu.is_same(t)) {
        lent.written |= written;
        return lent.cpu;
      }
    }
    if (lent_.empty()) dtype_ = t.scalar_type();
    auto cpu = t.layout() != at::kStrided ? not_strided(t) : opaque_memory() ? host_copy(t) : host_alias(t);
    add_keys(cpu);
    lent_.push_back({t, cpu, written});
    return cpu;
  }

  static at::Tensor host_copy(const at::Tensor& t) {
    auto cpu = opaque_to_host(t);
    if (t.is_conj()) cpu._set_conj(true);
    if (t.is_neg()) cpu._set_neg(true);
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) cpu.unsafeGetTensorImpl()->set_wrapped_number(true);
    return cpu;
  }

  at::Tensor not_strided(const at::Tensor& t) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, info_.name, ": ", t.layout(),
                                " tensors are not supported on device npu; "
                                "call .cpu() first.");
  }

  // Lazy conjugation and negation were seen to by their own fallbacks, or are left to the kernel.
  void add_keys(const at::Tensor& t) {
    static constexpr c10::DispatchKeySet lazy({c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});
    keys_ = keys_ | ((t.key_set() & c10::after_ADInplaceOrView_keyset) - lazy);
  }

  // A CPU kernel may have resized its argument (out=), given it new memory, or turned its strides
  // (transpose_).
  void write_back(Lent& lent) {
    auto* npu = lent.npu.unsafeGetTensorImpl();
    auto* cpu = lent.cpu.unsafeGetTensorImpl();
    const bool same_shape = npu->sizes() == cpu->sizes() && npu->strides() == cpu->strides() &&
                            npu->storage_offset() == cpu->storage_offset();
    if (opaque_memory()) {
      if (npu->sizes() != cpu->sizes()) lent.npu.resize_(cpu->sizes());
      // As the elements lie in memory: both have the same bits for conjugation and sign.
      auto elements = lent.cpu.alias();
      elements._set_conj(false);
      elements._set_neg(false);
      opaque_write_host(lent.npu, elements);
      return;
    }
    auto& storage = *npu->unsafe_storage().unsafeGetStorageImpl();
    refresh_storage(storage);
    if (!same_shape) npu->set_sizes_and_strides(cpu->sizes(), cpu->strides(), cpu->storage_offset());
  }

  void return_value(c10::IValue& value) {
    if (value.isTensor()) {
      value = give_back(value.toTensor());
    } else if (value.isTensorList()) {
      auto list = value.toTensorVector();
      for (auto& t : list) t = give_back(t);
      value = c10::List<at::Tensor>(list);
    }
  }

  at::Tensor give_back(const at::Tensor& t) {
    if (!t.defined()) return t;
    for (auto& lent : lent_)
      if (t.is_same(lent.cpu)) return lent.npu;
    if (t.device().type() != c10::DeviceType::CPU) return t;
    TORCH_CHECK_NOT_IMPLEMENTED(t.layout() == at::kStrided, info_.name, " would return a ", t.layout(),
                                " tensor, which device npu does not support; call .cpu() first.");
    if (opaque_memory()) return opaque_from_host(t, device_);
    // A result over an argument's memory (a view) must share the npu storage.
    for (auto& lent : lent_) {
      if (!t.is_alias_of(lent.cpu)) continue;
      auto view = at::detail::make_tensor<c10::TensorImpl>(
          c10::TensorImpl::VIEW, c10::Storage(lent.npu.storage()),
          c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), t.dtype());
      view.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
      return view;
    }
    // Two results over one memory share one npu storage.
    for (auto& [cpu, npu] : adopted_) {
      if (!t.is_alias_of(cpu)) continue;
      auto sibling = at::detail::make_tensor<c10::TensorImpl>(
          c10::Storage(npu.storage()), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), t.dtype());
      sibling.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
      return sibling;
    }
    auto out = adopt_host(t, device_);
    adopted_.emplace_back(t, out);
    return out;
  }

  const c10::OperatorHandle& op_;
  const OpInfo& info_;
  torch::jit::Stack& stack_;
  size_t begin_;
  c10::DeviceIndex device_ = -1;
  bool found_ = false;
  c10::ScalarType dtype_ = c10::ScalarType::Undefined;
  c10::DispatchKeySet keys_;
  c10::SmallVector<Lent, 4> lent_;
  c10::SmallVector<std::pair<at::Tensor, at::Tensor>, 2> adopted_;
};

}  // namespace

void host_fallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const RouteMode mode = route_mode();
  if (mode == RouteMode::Strict) require_allowed_on_host(op_info(op).name, kNoRow);
  host_route(op, keys, stack, mode == RouteMode::Host ? kHostForced : kNoRow);
}

// On Ascend there are no sparse tensors, and a host route would hide that.
void refuse_sparse(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op_info(op).name,
      ": device npu has dense tensors only; call to_dense() before moving one there, and "
      "leave out sparse=True (embeddings) and sparse_grad=True (gather).");
}

void host_route(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack, Reason why) {
  ensure_initialized();
  HostCall(op, op_info(op), *stack).run(why);
}

// Device cuda is npu (cuda_redirect.cpp), but its sparse keys are none of the device's.
TORCH_LIBRARY_IMPL(_, SparsePrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&refuse_sparse>());
}
TORCH_LIBRARY_IMPL(_, SparseCsrPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&refuse_sparse>());
}
TORCH_LIBRARY_IMPL(_, SparseCUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&refuse_sparse>());
}
TORCH_LIBRARY_IMPL(_, SparseCsrCUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&refuse_sparse>());
}
// The composite that torch has for every device makes an object that no operator takes, not even to print it.
TORCH_LIBRARY_IMPL(aten, SparseCsrPrivateUse1, m) {
  m.impl("_sparse_compressed_tensor_unsafe", torch::CppFunction::makeFromBoxedFunction<&refuse_sparse>());
}
TORCH_LIBRARY_IMPL(aten, SparseCsrCUDA, m) {
  m.impl("_sparse_compressed_tensor_unsafe", torch::CppFunction::makeFromBoxedFunction<&refuse_sparse>());
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&host_fallback>());
}

}  // namespace mindspeed_ms

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TypeProperties.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include "aten/borrow.h"
#include "aten/host_route.h"
#include "aten/lowering_table.h"
#include "aten/meta_results.h"
#include "aten/op_info.h"
#include "runtime/device.h"
#include "runtime/opaque.h"

namespace py = pybind11;

namespace mindspeed_ms {

std::recursive_mutex& mindspore_mutex() {
  static auto* mutex = new std::recursive_mutex;
  return *mutex;
}

namespace {

// What the arguments of one call say about which kernels may take it, and where its results belong.
struct Inspection : Call {
  c10::DeviceIndex device = 0;

  bool open() const { return barrier == kFirstChoice; }
  void set_dtype(at::ScalarType key) {
    dtype = key;
    dtypes = dtype_bit(key);
  }
};

class Kernel final : public c10::OperatorKernel {
 public:
  Kernel(const Lowering* lowering, Form form) : lowering_(lowering), form_(form) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) const {
    Reason why = kHostForced;
    if (route_mode() != RouteMode::Host) {
      ensure_initialized();
      const auto& info = op_info(op);
      auto seen = inspect(info, *stack);
      if (seen.barrier == kEmpty && opaque_memory()) {
        if (without_elements(op, info, *stack, seen.device)) return;
        if (leave_out_empty(*stack, stack->size() - info.args.size())) seen = inspect(info, *stack);
      }
      auto choice = choose(lowering_->offer, seen);
      while (choice.route != Route::Host) {
        if (call(op, keys, info, *stack, choice, seen)) return;
        choice = choose_after(lowering_->offer, seen, {choice.route, kDeclined});
      }
      why = choice.why;
      // Without elements there is nothing to compute: the host only makes the result.
      if (route_mode() == RouteMode::Strict && why != kEmpty) require_allowed_on_host(info.name, why);
    }
    host_route(op, keys, stack, why);
  }

 private:
  // What has no elements, or is the sum over none, needs no kernel: where the host would take a copy of every
  // argument, it is made here.
  bool without_elements(const c10::OperatorHandle& op, const OpInfo& info, torch::jit::Stack& stack,
                        c10::DeviceIndex device) const {
    const auto shapes = meta_results(op, info, stack);
    if (!shapes) return false;
    std::vector<at::Tensor> results;
    for (const auto& shape : *shapes) {
      if (!shape.defined()) {
        results.emplace_back();
        continue;
      }
      if (shape.numel() && !lowering_->sums) return false;
      results.push_back(at::empty_strided(shape.sizes(), shape.strides(),
                                          shape.options().device(c10::Device(kNpu, device))));
      if (shape.numel()) results.back().zero_();
    }
    const size_t begin = stack.size() - info.args.size();
    finish(op, info, stack, begin, std::move(results), std::nullopt);
    return true;
  }

  // Takes the tensors without elements from a list that is joined.
  bool leave_out_empty(torch::jit::Stack& stack, size_t begin) const {
    if (!lowering_->joins) return false;
    const auto given = stack[begin].toTensorVector();
    c10::List<at::Tensor> kept;
    for (const auto& t : given) {
      if (t.scalar_type() != given[0].scalar_type()) return false;  // it has a say in the dtype of the result
      if (t.numel()) kept.push_back(t);
    }
    if (kept.empty()) return false;
    stack[begin] = std::move(kept);
    return true;
  }

  bool takes_scalar(const c10::Scalar& s, at::ScalarType key) const {
    if (s.isComplex()) return false;
    return !(s.isFloatingPoint() && !at::isFloatingType(key));  // would promote the result
  }

  void see(const at::Tensor& t, Inspection& seen) const {
    if (!t.defined()) return;
    if (t.device().type() == kNpu) {
      if (t.numel() == 0)
        seen.barrier = kEmpty;
      else if (const Reason against = unreadable(t))
        seen.barrier = against;
      else if (t.scalar_type() != seen.dtype && !lowering_->mixed && !lowering_->promotes)
        seen.barrier = kMixedDtypes;
    } else if (t.dim() == 0 && t.device().is_cpu()) {
      if (!takes_scalar(t.item(), seen.dtype)) seen.barrier = kScalarPromotes;
    } else {
      seen.barrier = kElsewhere;
    }
  }

  Inspection inspect(const OpInfo& info, const torch::jit::Stack& stack) const {
    Inspection seen;
    const size_t begin = stack.size() - info.args.size();
    find_key(stack, begin, info, seen);
    for (size_t i = 0; i < info.args.size() && seen.open(); ++i) {
      const auto& arg = stack[begin + i];
      const bool out = form_ == Form::Out && info.args[i].written;
      if (arg.isTensor()) {
        // An `out` tensor is only written: its dtype and size do not matter, its place does.
        if (!out)
          see(arg.toTensor(), seen), seen.numel = std::max<int64_t>(seen.numel, arg.toTensor().numel());
        else if (arg.toTensor().device().type() != kNpu)
          seen.barrier = kElsewhere;
      } else if (arg.isTensorList()) {
        for (const auto& t : arg.toListRef()) {
          if (seen.open()) see(t.toTensor(), seen);
          seen.numel += t.toTensor().numel();
        }
      } else if (arg.isOptionalTensorList()) {
        for (const std::optional<at::Tensor>& t : arg.toOptionalTensorList())
          if (t && seen.open()) see(*t, seen);
      } else if (arg.isComplexDouble()) {
        seen.barrier = kScalarPromotes;
      }
    }
    return seen;
  }

  // The dtype that chooses the kernel, and the device of the results.
  void find_key(const torch::jit::Stack& stack, size_t begin, const OpInfo& info, Inspection& seen) const {
    auto consider = [&](const at::Tensor& t) {
      if (!t.defined() || t.device().type() != kNpu) return;
      seen.set_dtype(t.scalar_type());
      seen.device = t.device().index();
      seen.barrier = kFirstChoice;
    };
    seen.barrier = kNoTensor;
    if (!lowering_->promotes) {
      const auto& value = stack[begin + lowering_->key_arg];
      if (value.isTensor())
        consider(value.toTensor());
      else if (value.isTensorList() && !value.toListRef().empty())
        consider(value.toListRef()[0].toTensor());
      return;
    }
    const at::Tensor* first = nullptr;
    const c10::IValue* number = nullptr;
    bool same = true;
    for (size_t i = lowering_->key_arg; i < info.args.size(); ++i) {
      if (form_ == Form::Out && info.args[i].written) continue;
      const auto& value = stack[begin + i];
      if (value.isTensor()) {
        const auto& t = value.toTensor();
        if (!t.defined()) continue;
        consider(t);
        if (!first)
          first = &t;
        else
          same &= t.scalar_type() == first->scalar_type();
      } else if (i == lowering_->key_arg + 1 && value.isScalar()) {
        number = &value;  // self (op) number; numbers further on (alpha, value) do not promote
      }
    }
    if (!seen.open() || (same && !number)) return;
    at::native::ResultTypeState state;
    for (size_t i = lowering_->key_arg; i < info.args.size(); ++i) {
      const auto& value = stack[begin + i];
      if (form_ == Form::Out && info.args[i].written) continue;
      if (value.isTensor() && value.toTensor().defined())
        state = at::native::update_result_type_state(value.toTensor(), state);
    }
    if (number) state = at::native::update_result_type_state(number->toScalar(), state);
    seen.set_dtype(at::native::result_type(state));
  }

  // Runs the kernel; false if it declined (returned NotImplemented), with the stack untouched.
  bool call(const c10::OperatorHandle& op, c10::DispatchKeySet keys, const OpInfo& info,
            torch::jit::Stack& stack, Choice choice, const Inspection& seen) const {
    const Route route = choice.route;
    py::gil_scoped_acquire gil;
    const size_t begin = stack.size() - info.args.size();
    size_t count = info.args.size();
    if (form_ == Form::Out)
      while (count && info.args[count - 1].written) --count;

    Timed timed(info.counters, route, seen.dtype, choice.why);
    // Not through autograd: this is the kernel below it, and csrc kernels call torch themselves.
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    py::object result;
    py::tuple args(count);
    const auto& in_place =
        route == Route::MindSpore ? lowering_->mindspore_in_place : lowering_->csrc_in_place;
    const bool direct = !in_place.is_none() && writes_directly(stack, begin, seen);
    const bool reads_narrow =
        route == Route::Csrc ? lowering_->csrc_widens : direct && lowering_->mindspore_widens;
    {
      std::optional<MindSporeLock> lock;
      if (route == Route::MindSpore) lock.emplace();
      for (size_t i = 0; i < count; ++i) {
        const bool cast =
            lowering_->promotes && i >= lowering_->key_arg && !(reads_narrow && is_narrow(stack, begin, i));
        args[i] =
            to_python(stack[begin + i], info.args[i], route, cast ? seen.dtype : at::ScalarType::Undefined);
      }
      const auto& fn = direct ? in_place : route == Route::MindSpore ? lowering_->mindspore : lowering_->csrc;
      result = py::reinterpret_steal<py::object>(PyObject_CallObject(fn.ptr(), args.ptr()));
    }
    if (!result) {
      py::error_already_set cause;
      // If the arguments are wrong, torch's own kernel says so in torch's words.
      {
        py::gil_scoped_release nogil;
        host_route(op, keys, &stack, kFailed);
      }
      py::raise_from(
          cause, PyExc_RuntimeError,
          (info.name + " failed on route " + route_name(route) + " (" + cause.what() + ")").c_str());
      throw py::error_already_set();
    }
    if (result.ptr() == Py_NotImplemented) {
      timed.cancel();
      return false;
    }
    if (direct) {
      give_back(op, stack, begin, written_tensors(info, stack, begin));
      return true;
    }
    std::vector<at::Tensor> results;
    std::optional<py::object> plain;
    collect(result, seen, results, plain, stack, begin, args);
    finish(op, info, stack, begin, std::move(results), plain);
    return true;
  }

  // Whether argument `i` is narrower than a float32 key: a bfloat16 gradient that is added to its float32
  // buffer needs no float32 copy where the kernel reads it as it is.
  bool is_narrow(const torch::jit::Stack& stack, size_t begin, size_t i) const {
    const auto& key = stack[begin + lowering_->key_arg];
    const auto& value = stack[begin + i];
    if (i == lowering_->key_arg || !key.isTensor() || !value.isTensor()) return false;
    const auto& t = value.toTensor();
    return key.toTensor().scalar_type() == at::kFloat && t.defined() && t.device().type() == kNpu &&
           (t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kHalf);
  }

  // `cast`: the dtype that tensors must have, or Undefined.
  py::object to_python(const c10::IValue& value, const ArgInfo& arg, Route route, at::ScalarType cast) const {
    auto lend = [&](const at::Tensor& t) {
      return route == Route::MindSpore ? lend_to_mindspore(t) : py::cast(t);
    };
    auto tensor = [&](const at::Tensor& t) -> py::object {
      if (!t.defined()) return py::none();
      if (t.device().type() != kNpu) return number(t.item());
      if (cast != at::ScalarType::Undefined && t.scalar_type() != cast) return lend(t.to(cast).contiguous());
      // MindSpore makes views contiguous, too, but takes five times as long.
      if (!lowering_->strided && !t.is_contiguous()) return lend(t.contiguous());
      return lend(t);
    };
    if (value.isTensor()) return tensor(value.toTensor());
    if (value.isTensorList()) {
      auto items = value.toListRef();
      py::list list(items.size());
      for (size_t i = 0; i < items.size(); ++i) list[i] = tensor(items[i].toTensor());
      return list;
    }
    if (value.isOptionalTensorList()) {
      py::list list;
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorList())
        list.append(t ? tensor(*t) : py::none());
      return list;
    }
    if (arg.kind == ArgKind::Dtype && value.isInt())
      return py::reinterpret_borrow<py::object>(
          reinterpret_cast<PyObject*>(torch::getTHPDtype(static_cast<at::ScalarType>(value.toInt()))));
    return torch::jit::toPyObject(value);
  }

  static py::object number(const c10::Scalar& s) {
    if (s.isBoolean()) return py::bool_(s.toBool());
    if (s.isIntegral(false)) return py::int_(s.toLong());
    return py::float_(s.toDouble());
  }

  // Turns what the kernel returned into npu tensors; anything else (a bool, a number) is left in `plain`.
  void collect(py::handle result, const Inspection& seen, std::vector<at::Tensor>& results,
               std::optional<py::object>& plain, const torch::jit::Stack& stack, size_t begin,
               const py::tuple& args) const {
    if (PyTuple_Check(result.ptr()) || PyList_Check(result.ptr())) {
      for (auto item : py::reinterpret_borrow<py::sequence>(result))
        collect(item, seen, results, plain, stack, begin, args);
    } else if (result.is_none()) {
      results.emplace_back();
    } else if (THPVariable_Check(result.ptr())) {
      results.push_back(THPVariable_Unpack(result.ptr()));
    } else if (PyBool_Check(result.ptr()) || PyFloat_Check(result.ptr()) || PyLong_Check(result.ptr())) {
      plain = py::reinterpret_borrow<py::object>(result);
    } else {
      auto out = adopt_from_mindspore(result, seen.device);
      const bool shared = opaque_memory() ? was_lent(result, args) : shares_memory(out, stack, begin);
      results.push_back(shared ? out.clone() : out);
    }
  }

  // MindSpore may hand an input back (a cast to the same dtype, a reshape): torch expects fresh memory.
  static bool shares_memory(const at::Tensor& out, const torch::jit::Stack& stack, size_t begin) {
    auto* p = static_cast<const char*>(out.storage().data());
    auto inside = [&](const at::Tensor& t) {
      if (!t.defined() || t.device().type() != kNpu) return false;
      auto* base = static_cast<const char*>(t.storage().data());
      return p >= base && p < base + t.storage().nbytes();
    };
    for (size_t i = begin; i < stack.size(); ++i) {
      if (stack[i].isTensor() && inside(stack[i].toTensor())) return true;
      if (stack[i].isTensorList())
        for (const auto& t : stack[i].toListRef())
          if (inside(t.toTensor())) return true;
    }
    return false;
  }

  void finish(const c10::OperatorHandle& op, const OpInfo& info, torch::jit::Stack& stack, size_t begin,
              std::vector<at::Tensor> results, const std::optional<py::object>& plain) const {
    const auto& returns = op.schema().returns();
    if (form_ == Form::Functional) {
      stack.erase(stack.begin() + static_cast<int64_t>(begin), stack.end());
      if (returns.size() == 1 && returns[0].type()->kind() == c10::TypeKind::ListType) {
        stack.emplace_back(c10::List<at::Tensor>(results));
      } else if (plain) {
        TORCH_INTERNAL_ASSERT(returns.size() == 1);
        stack.push_back(torch::jit::toIValue(*plain, returns[0].real_type()));
      } else {
        TORCH_INTERNAL_ASSERT(returns.size() == results.size(), info.name, ": the lowering returned ",
                              results.size(), " values, the schema has ", returns.size());
        for (auto& r : results) stack.emplace_back(std::move(r));
      }
      return;
    }
    auto written = written_tensors(info, stack, begin);
    TORCH_INTERNAL_ASSERT(written.size() == results.size(), info.name, ": the lowering returned ",
                          results.size(), " values for ", written.size(), " written tensors");
    for (size_t i = 0; i < written.size(); ++i) write(info, written[i], results[i]);
    give_back(op, stack, begin, written);
  }

  static std::vector<at::Tensor> written_tensors(const OpInfo& info, const torch::jit::Stack& stack,
                                                 size_t begin) {
    std::vector<at::Tensor> written;
    for (size_t i = 0; i < info.args.size(); ++i) {
      if (!info.args[i].written) continue;
      const auto& value = stack[begin + i];
      if (value.isTensor())
        written.push_back(value.toTensor());
      else
        for (const auto& t : value.toListRef()) written.push_back(t.toTensor());
    }
    return written;
  }

  // Replaces the arguments by the operator's returns, which are the tensors it wrote.
  static void give_back(const c10::OperatorHandle& op, torch::jit::Stack& stack, size_t begin,
                        const std::vector<at::Tensor>& written) {
    const auto& returns = op.schema().returns();
    stack.erase(stack.begin() + static_cast<int64_t>(begin), stack.end());
    if (returns.empty()) return;
    if (returns[0].type()->kind() == c10::TypeKind::ListType)
      stack.emplace_back(c10::List<at::Tensor>(written));
    else
      for (auto& t : written) stack.emplace_back(t);
  }

  // Whether a kernel may write its first argument where it lies: contiguous, of the kernel's dtype and of the
  // result's size, and not overlapping another argument.
  bool writes_directly(const torch::jit::Stack& stack, size_t begin, const Inspection& seen) const {
    if (form_ != Form::InPlace) return false;
    auto fits = [&](const at::Tensor& t) { return t.is_contiguous() && t.scalar_type() == seen.dtype; };
    if (stack[begin].isTensorList()) {
      for (const auto& t : stack[begin].toListRef())
        if (!fits(t.toTensor())) return false;
      return true;
    }
    const auto& target = stack[begin].toTensor();
    if (!fits(target)) return false;
    for (size_t i = begin + 1; i < stack.size(); ++i) {
      if (!stack[i].isTensor() || !stack[i].toTensor().defined()) continue;
      // A result that is larger than its place is an error, which torch words.
      if (opaque_memory() && !at::is_expandable_to(stack[i].toTensor().sizes(), target.sizes())) return false;
      const auto status = at::get_overlap_status(target, stack[i].toTensor());
      if (status != at::MemOverlapStatus::No && status != at::MemOverlapStatus::Full) return false;
    }
    return true;
  }

  void write(const OpInfo& info, const at::Tensor& target, const at::Tensor& result) const {
    TORCH_CHECK(at::canCast(result.scalar_type(), target.scalar_type()), "result type ", result.scalar_type(),
                " can't be cast to the desired output type ", target.scalar_type());
    if (form_ == Form::Out) {
      at::native::resize_output(target, result.sizes());
    } else {
      TORCH_CHECK(target.sizes() == result.sizes(), "output with shape ", target.sizes(),
                  " doesn't match the broadcast shape ", result.sizes(), " (", info.name, ")");
    }
    if (opaque_memory()) {
      // Not through the dispatcher where that would end in the same copy.
      if (target.is_conj() || target.is_neg()) return void(target.copy_(result));
      at::assert_no_internal_overlap(target);
      if (!opaque_copy(target, result)) target.copy_(result);
    } else {
      // Torch owns the memory that an in-place operator writes; MindSpore's own in-place kernels lose writes.
      host_alias(target).copy_(host_alias(result));
    }
  }

  const Lowering* lowering_;
  Form form_;
};

}  // namespace

torch::CppFunction lowered(const Lowering* lowering, Form form) {
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Kernel>(lowering, form));
}

}  // namespace mindspeed_ms

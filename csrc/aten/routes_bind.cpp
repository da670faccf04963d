#include "aten/routes_bind.h"

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <unordered_map>

#include "aten/lowering.h"
#include "runtime/device.h"

namespace py = pybind11;

namespace mindspeed_ms {
namespace {

constexpr uint64_t bits(std::initializer_list<at::ScalarType> dtypes) {
  uint64_t mask = 0;
  for (auto dtype : dtypes) mask |= uint64_t{1} << static_cast<int>(dtype);
  return mask;
}

// What fused kernels take unless they say otherwise.
constexpr uint64_t kNative = bits({at::kFloat, at::kBFloat16, at::kHalf});

Offer kernel_offer(uint64_t mindspore, uint64_t csrc) {
  Offer offer;
  offer.last = Route::Composite;
  offer.mindspore_dtypes = mindspore;
  offer.csrc_dtypes = csrc;
  return offer;
}

// Kernel -> its forms, guarded by the GIL.
struct Kernel {
  // A name with a namespace is that of an operator of torch which Python computes.
  explicit Kernel(const std::string& name)
      : counters(counters_of(name.find("::") == name.npos ? "mindspeed_ms::" + name : name)) {}
  Offer offer = kernel_offer(0, kNative);
  OpCounters& counters;
};

Kernel& kernel(const std::string& name) {
  static auto* known = new std::unordered_map<std::string, Kernel>;
  return known->try_emplace(name, name).first->second;
}

Call inspect(at::ArrayRef<const at::Tensor*> tensors) {
  Call call;
  call.npu = false;
  for (const auto* tensor : tensors) {
    const auto& t = *tensor;
    if (!call.dtypes) call.dtype = t.scalar_type();
    call.dtypes |= dtype_bit(t.scalar_type());
    call.npu |= t.device().type() == kNpu;
    if (call.barrier == kFirstChoice)
      call.barrier =
          t.key_set().has(c10::DispatchKey::Python) ? static_cast<Reason>(kWrapper) : unreadable(t);
  }
  return call;
}

// The tensors among arguments, those in lists, too.
template <class F>
void each_tensor(const py::handle& arguments, const F& visit) {
  for (auto item : py::reinterpret_borrow<py::sequence>(arguments)) {
    if (THPVariable_Check(item.ptr()))
      visit(THPVariable_Unpack(item.ptr()));
    else if (PyList_Check(item.ptr()))
      each_tensor(item, visit);
  }
}

using Tensors = c10::SmallVector<const at::Tensor*, 8>;

Tensors tensors_of(const py::handle& arguments) {
  Tensors tensors;
  each_tensor(arguments, [&](const at::Tensor& t) { tensors.push_back(&t); });
  return tensors;
}

// The reason in a refusal: None, a sentence, or a function that gives one of them.
std::optional<std::string> refused(py::object refusal) {
  if (!refusal.is_none() && !py::isinstance<py::str>(refusal)) refusal = refusal();
  if (refusal.is_none()) return std::nullopt;
  return py::cast<std::string>(refusal);
}

// `refusal`, `csrc_refusal`: () -> the reason why that form does not take the call, if there is one.
template <class F, class G>
Choice choose_form(const std::string& name, Kernel& chosen, const Call& call, const F& refusal,
                   const G& csrc_refusal) {
  Choice choice = choose(chosen.offer, call);
  if (choice.route == Route::MindSpore)
    if (std::optional<std::string> why = refusal())
      choice = choose_after(chosen.offer, call, {choice.route, reason_of("refused: " + *why)});
  if (choice.route == Route::Csrc)
    if (std::optional<std::string> why = csrc_refusal())
      choice = {chosen.offer.last, reason_of("refused: " + *why)};
  // What the others compute they count themselves; a composite is counted as the operators that it calls.
  if (choice.route == Route::Composite && call.npu) {
    auto& counter = chosen.counters.at(choice.route, call.dtype, choice.why);
    const bool first = !counter.calls.fetch_add(1, std::memory_order_relaxed);
    if (first && on_ascend() && choice.why != kHostForced && choice.why != kCompositeForced)
      TORCH_WARN(name, " runs as its composite in torch operators on Ascend: ", sentence(choice.why));
  }
  return choice;
}

std::pair<const char*, Reason> choose_kernel(const std::string& name, const py::tuple& tensors,
                                             const py::object& refusal) {
  const auto choice = choose_form(
      name, kernel(name), inspect(tensors_of(tensors)), [&] { return refused(refusal); },
      [] { return std::nullopt; });
  return {route_name(choice.route), choice.why};
}

// As torch's own operators refuse arguments of several devices; a kernel would read an address of another's.
void require_one_device(const std::string& name, const Tensors& tensors) {
  for (const auto* t : tensors)
    TORCH_CHECK(t->device() == tensors[0]->device(), "mindspeed_ms::", name,
                ": expected all tensors to be on the same device, but found ", tensors[0]->device(), " and ",
                t->device(), "; move them with .to().");
}

// A fused kernel's operator: one call from torch to the form that takes it.
class FusedKernel {
 public:
  FusedKernel(std::string name, std::vector<size_t> decides, py::object check, py::object mindspore,
              py::object refusal, py::object csrc, py::object csrc_refusal, py::object composite)
      : name_(std::move(name)),
        kernel_(kernel(name_)),
        decides_(std::move(decides)),
        check_(std::move(check)),
        mindspore_(std::move(mindspore)),
        refusal_(std::move(refusal)),
        csrc_(std::move(csrc)),
        csrc_refusal_(std::move(csrc_refusal)),
        composite_(std::move(composite)) {}

  py::object operator()(const py::args& args) const {
    const auto tensors = tensors_of(args);
    require_one_device(name_, tensors);
    if (!check_.is_none()) check_(*args);
    Tensors deciding;
    for (const size_t i : decides_) {
      const py::handle arg = PyTuple_GET_ITEM(args.ptr(), static_cast<py::ssize_t>(i));
      if (THPVariable_Check(arg.ptr()))
        deciding.push_back(&THPVariable_Unpack(arg.ptr()));
      else if (!arg.is_none())
        each_tensor(arg, [&](const at::Tensor& t) { deciding.push_back(&t); });
    }
    const auto choice = choose_form(
        name_, kernel_, inspect(deciding), [&] { return mindspore_refuses(deciding, args); },
        [&] { return asked(csrc_refusal_, args); });
    if (choice.route == Route::Composite) return in_torch(deciding, args);
    std::optional<Timed> timed;
    if (!tensors.empty() && tensors[0]->device().type() == kNpu)
      timed.emplace(kernel_.counters, choice.route, tensors[0]->scalar_type(), choice.why);
    return choice.route == Route::MindSpore ? on_mindspore(mindspore_, args) : csrc_(*args);
  }

 private:
  static std::optional<std::string> asked(const py::object& refusal, const py::args& args) {
    if (refusal.is_none()) return std::nullopt;
    const auto why = refusal(*args);
    return why.is_none() ? std::nullopt : std::optional(py::cast<std::string>(why));
  }

  std::optional<std::string> mindspore_refuses(const Tensors& deciding, const py::args& args) const {
    for (const auto* t : deciding)  // MindSpore's operators raise
      if (!t->numel()) return "a tensor has no elements";
    return asked(refusal_, args);
  }

  // Counted as the operators in it.
  py::object in_torch(const Tensors& deciding, const py::args& args) const {
    for (const auto* t : deciding)
      if (!t->is_floating_point())
        throw py::type_error("mindspeed_ms::" + name_ + " takes real floating tensors, not " +
                             py::cast<std::string>(py::str(py::cast(t->scalar_type()))));
    return composite_(*args);
  }

  const std::string name_;
  Kernel& kernel_;
  const std::vector<size_t> decides_;
  const py::object check_, mindspore_, refusal_, csrc_, csrc_refusal_, composite_;
};

// What a kernel with every form would be given for these tensors; nothing is counted.
const char* implementation(const py::tuple& tensors) {
  static const auto* every = new Offer(kernel_offer(kNative, kNative));
  return route_name(choose(*every, inspect(tensors_of(tensors))).route);
}

// Counts what runs while it is open as one call.
class CountedCall {
 public:
  CountedCall(const std::string& name, at::ScalarType dtype, const std::string& route, Reason why)
      : timed_(std::make_unique<Timed>(kernel(name).counters, route_of(route), dtype, why)) {}
  void end() { timed_.reset(); }

 private:
  std::unique_ptr<Timed> timed_;
};

void bind_coverage(py::module_& m) {
  m.def(
      "coverage_rows",
      [] {
        py::list rows;
        for (auto& r : coverage_rows())
          rows.append(py::make_tuple(r.op, r.dtype, r.route, r.why, r.calls, r.seconds));
        return rows;
      },
      "(op, dtype, route, why, calls, exclusive seconds) of everything counted so far.");
  m.def("reset_coverage", &reset_coverage);
  m.def("count_thread_time", &Clock::of_thread, py::arg("on"),
        "Whether seconds are those in which the calling thread ran, not those of the wall.");
  py::class_<CountedCall>(m, "CountedCall", "Context manager that counts its body as one call of a kernel.")
      .def(py::init<const std::string&, at::ScalarType, const std::string&, Reason>(), py::arg("name"),
           py::arg("dtype"), py::arg("route"), py::arg("why"))
      .def("__enter__", [](py::object self) { return self; })
      .def("__exit__", [](CountedCall& call, const py::args&) { call.end(); });
}

}  // namespace

Route route_of(const std::string& name) {
  for (int r = 0; r < kRoutes; ++r)
    if (name == route_name(static_cast<Route>(r))) return static_cast<Route>(r);
  throw py::value_error("unknown route '" + name + "': it is one of mindspore, csrc, composite, host.");
}

uint64_t dtype_mask(const py::iterable& dtypes) {
  uint64_t mask = 0;
  for (auto dtype : dtypes) mask |= dtype_bit(py::cast<at::ScalarType>(dtype));
  return mask;
}

void bind_routes(py::module_& m) {
  py::enum_<RouteMode>(m, "RouteMode")
      .value("auto", RouteMode::Auto)
      .value("strict", RouteMode::Strict)
      .value("host", RouteMode::Host)
      .value("mindspore", RouteMode::MindSpore)
      .value("csrc", RouteMode::Csrc)
      .value("composite", RouteMode::Composite);
  m.def("route_mode", &route_mode);
  m.def("set_default_route_mode", &set_default_route_mode);
  m.def("exchange_route_override", &exchange_route_override);
  m.def("on_ascend", &on_ascend);
  m.def("set_target", &set_target, "MindSpore's device target, CPU or Ascend.");
  m.def("allow_on_host", &allow_on_host,
        "Lets `op` run on the host in strict mode (it moves data, computes nothing).");
  m.def(
      "declare_kernel",
      [](const std::string& name, const py::iterable& mindspore, const py::iterable& csrc) {
        kernel(name).offer = kernel_offer(dtype_mask(mindspore), dtype_mask(csrc));
      },
      py::arg("name"), py::arg("mindspore"), py::arg("csrc"), "The dtypes of a kernel's forms.");
  m.def("choose_kernel", &choose_kernel, py::arg("kernel"), py::arg("tensors"), py::arg("refusal"));
  py::class_<FusedKernel>(m, "FusedKernel",
                          "A fused kernel as torch calls it: checks, the choice of a form, counting.")
      .def(py::init<std::string, std::vector<size_t>, py::object, py::object, py::object, py::object,
                    py::object, py::object>(),
           py::arg("name"), py::arg("decides"), py::kw_only(), py::arg("check"), py::arg("mindspore"),
           py::arg("refusal"), py::arg("csrc"), py::arg("csrc_refusal"), py::arg("composite"))
      .def("__call__", &FusedKernel::operator());
  m.def("implementation", &implementation, py::arg("tensors"));
  bind_coverage(m);
}

}  // namespace mindspeed_ms

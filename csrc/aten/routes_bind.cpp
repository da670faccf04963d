#include "aten/routes_bind.h"

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <unordered_map>

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

Call inspect(const py::tuple& tensors) {
  Call call;
  call.npu = false;
  for (auto item : tensors) {
    if (item.is_none()) continue;
    const auto& t = THPVariable_Unpack(item.ptr());
    if (!call.dtypes) call.dtype = t.scalar_type();
    call.dtypes |= dtype_bit(t.scalar_type());
    call.npu |= t.device().type() == kNpu;
    if (call.barrier == kFirstChoice)
      call.barrier =
          t.key_set().has(c10::DispatchKey::Python) ? static_cast<Reason>(kWrapper) : unreadable(t);
  }
  return call;
}

// The reason in a refusal: None, a sentence, or a function that gives one of them.
std::optional<std::string> refused(py::object refusal) {
  if (!refusal.is_none() && !py::isinstance<py::str>(refusal)) refusal = refusal();
  if (refusal.is_none()) return std::nullopt;
  return py::cast<std::string>(refusal);
}

std::pair<const char*, Reason> choose_kernel(const std::string& name, const py::tuple& tensors,
                                             const py::object& refusal, const py::object& csrc_refusal) {
  auto& chosen = kernel(name);
  const Call call = inspect(tensors);
  Choice choice = choose(chosen.offer, call);
  if (choice.route == Route::MindSpore)
    if (auto why = refused(refusal))
      choice = choose_after(chosen.offer, call, {choice.route, reason_of("refused: " + *why)});
  if (choice.route == Route::Csrc)
    if (auto why = refused(csrc_refusal)) choice = {chosen.offer.last, reason_of("refused: " + *why)};
  // What the others compute they count themselves; a composite is counted as the operators that it calls.
  if (choice.route == Route::Composite && call.npu) {
    auto& counter = chosen.counters.at(choice.route, call.dtype, choice.why);
    const bool first = !counter.calls.fetch_add(1, std::memory_order_relaxed);
    if (first && on_ascend() && choice.why != kHostForced && choice.why != kCompositeForced)
      TORCH_WARN(name, " runs as its composite in torch operators on Ascend: ", sentence(choice.why));
  }
  return {route_name(choice.route), choice.why};
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

// As torch's own operators refuse arguments of several devices; a kernel would read an address of another's.
void require_one_device(const std::string& name, const py::tuple& arguments) {
  std::optional<at::Device> first;
  each_tensor(arguments, [&](const at::Tensor& t) {
    if (!first) first = t.device();
    TORCH_CHECK(t.device() == *first, "mindspeed_ms::", name,
                ": expected all tensors to be on the same device, but found ", *first, " and ", t.device(),
                "; move them with .to().");
  });
}

// What a kernel with every form would be given for these tensors; nothing is counted.
const char* implementation(const py::tuple& tensors) {
  static const auto* every = new Offer(kernel_offer(kNative, kNative));
  return route_name(choose(*every, inspect(tensors)).route);
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
  m.def("choose_kernel", &choose_kernel, py::arg("kernel"), py::arg("tensors"), py::arg("refusal"),
        py::arg("csrc_refusal"));
  m.def("require_one_device", &require_one_device, py::arg("kernel"), py::arg("arguments"),
        "RuntimeError unless all tensors among the arguments of a fused kernel are on one device.");
  m.def("implementation", &implementation, py::arg("tensors"));
  bind_coverage(m);
}

}  // namespace mindspeed_ms

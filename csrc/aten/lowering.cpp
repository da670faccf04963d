#include "aten/lowering.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "aten/borrow.h"
#include "aten/host_route.h"
#include "aten/lowering_table.h"
#include "aten/routes_bind.h"
#include "runtime/device.h"

namespace py = pybind11;

namespace mindspeed_ms {
namespace {

const Lowering* immortal(const std::shared_ptr<Lowering>& lowering) {
  return (new std::shared_ptr<Lowering>(lowering))->get();
}

// Registrations live as long as the process: the dispatcher keeps the kernels.
torch::Library& library() {
  static auto* lib =
      new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  return *lib;
}

// Tensors as MindSpore sees them, contiguous; those in lists, too.
py::object lend_argument(py::handle value) {
  if (THPVariable_Check(value.ptr())) return lend_to_mindspore(THPVariable_Unpack(value.ptr()).contiguous());
  if (!PyList_Check(value.ptr()) || !PyList_GET_SIZE(value.ptr()) ||
      !THPVariable_Check(PyList_GET_ITEM(value.ptr(), 0)))
    return py::reinterpret_borrow<py::object>(value);
  py::list lent;
  for (auto item : py::reinterpret_borrow<py::list>(value)) lent.append(lend_argument(item));
  return lent;
}

py::object adopt_result(py::handle result, const py::tuple& lent, c10::DeviceIndex device) {
  if (result.is_none()) return py::none();
  if (PyTuple_Check(result.ptr()) || PyList_Check(result.ptr())) {
    py::list adopted;
    for (auto item : py::reinterpret_borrow<py::sequence>(result))
      adopted.append(adopt_result(item, lent, device));
    return PyTuple_Check(result.ptr()) ? py::object(py::tuple(adopted)) : adopted;
  }
  auto out = adopt_from_mindspore(result, device);
  return py::cast(was_lent(result, lent) ? out.clone() : out);
}

}  // namespace

py::object on_mindspore(const py::object& form, const py::args& args) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  py::tuple lent(args.size());
  for (size_t i = 0; i < args.size(); ++i) lent[i] = lend_argument(args[i]);
  py::object result;
  {
    MindSporeLock lock;
    result = py::reinterpret_steal<py::object>(PyObject_CallObject(form.ptr(), lent.ptr()));
  }
  if (!result) throw py::error_already_set();
  return adopt_result(result, lent, current_device());
}

void bind_lowerings(py::module_& m) {
  py::enum_<Form>(m, "Form", "How an overload relates to the functional operator whose kernel it uses.")
      .value("FUNCTIONAL", Form::Functional)
      .value("IN_PLACE", Form::InPlace)
      .value("OUT", Form::Out);
  py::class_<Lowering, std::shared_ptr<Lowering>>(m, "Lowering")
      .def(py::init([](std::string name, py::object mindspore, py::iterable mindspore_dtypes, py::object csrc,
                       py::iterable csrc_dtypes, size_t key_arg, bool mixed, bool promotes, bool strided,
                       py::object mindspore_in_place, py::object csrc_in_place, bool mindspore_widens,
                       bool csrc_widens, bool sums, bool joins) {
             auto self = std::make_shared<Lowering>();
             self->name = std::move(name);
             self->mindspore = std::move(mindspore);
             self->csrc = std::move(csrc);
             self->offer.mindspore_dtypes = dtype_mask(mindspore_dtypes);
             self->offer.csrc_dtypes = dtype_mask(csrc_dtypes);
             self->offer.calibrated = true;
             self->key_arg = key_arg;
             self->mixed = mixed;
             self->promotes = promotes;
             self->mindspore_in_place = std::move(mindspore_in_place);
             self->csrc_in_place = std::move(csrc_in_place);
             self->strided = strided;
             self->mindspore_widens = mindspore_widens;
             self->csrc_widens = csrc_widens;
             self->sums = sums;
             self->joins = joins;
             return self;
           }),
           py::arg("name"), py::kw_only(), py::arg("mindspore"), py::arg("mindspore_dtypes"), py::arg("csrc"),
           py::arg("csrc_dtypes"), py::arg("key_arg"), py::arg("mixed"), py::arg("promotes"),
           py::arg("strided"), py::arg("mindspore_in_place"), py::arg("csrc_in_place"),
           py::arg("mindspore_widens"), py::arg("csrc_widens"), py::arg("sums"), py::arg("joins"))
      .def(
          "set_auto",
          [](Lowering& self, at::ScalarType dtype, const std::string& below, const std::string& above,
             int64_t numel, const std::string& why_below, const std::string& why_above) {
            const Offer::BySize fastest{route_of(below), route_of(above), reason_of(why_below),
                                        reason_of(why_above), numel};
            for (Route r : {fastest.below, fastest.above})
              if (!self.offer.has(r, dtype))
                throw py::value_error(self.name + " has no kernel on route " + route_name(r) +
                                      " for this dtype.");
            self.offer.by_size[static_cast<int>(dtype)] = fastest;
          },
          py::arg("dtype"), py::arg("below"), py::arg("above"), py::arg("numel"), py::arg("why_below") = "",
          py::arg("why_above") = "",
          "Route 'auto' for `dtype`: `below` for calls whose largest tensor has fewer than `numel` elements, "
          "else `above`; and the sentences that say so.")
      .def("auto_route",
           [](const Lowering& self, at::ScalarType dtype, int64_t numel) {
             const auto& fastest = self.offer.by_size[static_cast<int>(dtype)];
             return route_name(numel < fastest.numel ? fastest.below : fastest.above);
           })
      .def_readonly("name", &Lowering::name);
  m.def(
      "register_lowering",
      [](const std::string& overload, std::shared_ptr<Lowering> lowering, Form form) {
        drop_host_kernel("aten::" + overload);
        library().impl(overload.c_str(), lowered(immortal(lowering), form));
      },
      py::arg("overload"), py::arg("lowering"), py::arg("form"),
      "Makes `lowering` the npu kernel of aten::`overload`.");
  m.def(
      "on_mindspore", &on_mindspore,
      "Calls a function of ms.Tensors on the memory of npu tensors, those in lists, too: its results as npu "
      "tensors of their own.");
  m.def("lock_mindspore", [] {
    if (mindspore_mutex().try_lock()) return;
    py::gil_scoped_release nogil;
    mindspore_mutex().lock();
  });
  m.def("unlock_mindspore", [] { mindspore_mutex().unlock(); });
}

}  // namespace mindspeed_ms

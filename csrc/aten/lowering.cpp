#include "aten/lowering.h"

#include <torch/csrc/utils/pybind.h>

#include "aten/host_route.h"
#include "aten/lowering_table.h"

namespace py = pybind11;

namespace mindspeed_ms {
namespace {

uint64_t dtype_mask(const std::vector<at::ScalarType>& dtypes) {
  uint64_t mask = 0;
  for (auto d : dtypes) mask |= uint64_t{1} << static_cast<int>(d);
  return mask;
}

Route route_of(const std::string& name) {
  for (int r = 0; r < kRoutes; ++r)
    if (name == route_name(static_cast<Route>(r))) return static_cast<Route>(r);
  throw py::value_error("unknown route '" + name + "': it is one of mindspore, csrc, host.");
}

std::vector<at::ScalarType> dtypes_of(const py::iterable& dtypes) {
  std::vector<at::ScalarType> out;
  for (auto d : dtypes) out.push_back(py::cast<at::ScalarType>(d));
  return out;
}

const Lowering* immortal(const std::shared_ptr<Lowering>& lowering) {
  return (new std::shared_ptr<Lowering>(lowering))->get();
}

// Registrations live as long as the process: the dispatcher keeps the kernels.
torch::Library& library() {
  static auto* lib =
      new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  return *lib;
}

}  // namespace

void bind_lowerings(py::module_& m) {
  py::enum_<Form>(m, "Form", "How an overload relates to the functional operator whose kernel it uses.")
      .value("FUNCTIONAL", Form::Functional)
      .value("IN_PLACE", Form::InPlace)
      .value("OUT", Form::Out);
  py::class_<Lowering, std::shared_ptr<Lowering>>(m, "Lowering")
      .def(py::init([](std::string name, py::object mindspore, py::iterable mindspore_dtypes, py::object csrc,
                       py::iterable csrc_dtypes, size_t key_arg, bool mixed, bool promotes, bool strided,
                       py::object csrc_in_place, bool csrc_widens) {
             auto self = std::make_shared<Lowering>();
             self->name = std::move(name);
             self->mindspore = std::move(mindspore);
             self->csrc = std::move(csrc);
             self->mindspore_dtypes = dtype_mask(dtypes_of(mindspore_dtypes));
             self->csrc_dtypes = dtype_mask(dtypes_of(csrc_dtypes));
             self->key_arg = key_arg;
             self->mixed = mixed;
             self->promotes = promotes;
             self->csrc_in_place = std::move(csrc_in_place);
             self->strided = strided;
             self->csrc_widens = csrc_widens;
             return self;
           }),
           py::arg("name"), py::kw_only(), py::arg("mindspore"), py::arg("mindspore_dtypes"), py::arg("csrc"),
           py::arg("csrc_dtypes"), py::arg("key_arg"), py::arg("mixed"), py::arg("promotes"),
           py::arg("strided"), py::arg("csrc_in_place"), py::arg("csrc_widens"))
      .def(
          "set_auto",
          [](Lowering& self, at::ScalarType dtype, const std::string& below, const std::string& above,
             int64_t numel) {
            Lowering::Auto a{route_of(below), route_of(above), numel};
            for (Route r : {a.below, a.above})
              if (!self.has(r, dtype))
                throw py::value_error(self.name + " has no kernel on route " + route_name(r) +
                                      " for this dtype.");
            self.automatic[static_cast<int>(dtype)] = a;
          },
          py::arg("dtype"), py::arg("below"), py::arg("above"), py::arg("numel"),
          "Route 'auto' for `dtype`: `below` for calls whose largest tensor has fewer than `numel` elements, "
          "else "
          "`above`.")
      .def("auto_route",
           [](const Lowering& self, at::ScalarType dtype, int64_t numel) {
             const auto& a = self.automatic[static_cast<int>(dtype)];
             return route_name(numel < a.numel ? a.below : a.above);
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
  m.def("lock_mindspore", [] {
    if (mindspore_mutex().try_lock()) return;
    py::gil_scoped_release nogil;
    mindspore_mutex().lock();
  });
  m.def("unlock_mindspore", [] { mindspore_mutex().unlock(); });
}

}  // namespace mindspeed_ms

#include "kernels/bind.h"

#include "kernels/codes.h"
#include "kernels/isa.h"
#include "kernels/pool.h"
#include "native.h"

namespace mindspeed_ms {

void bind_kernels(pybind11::module_& m) {
  m.def("set_threads", &kernels::pool::set_threads, pybind11::arg("n"),
        pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Set the number of pool threads, the caller included.");
  m.def("threads", &kernels::pool::threads, "Number of pool threads, the caller included.");
  m.def("force_isa", &kernels::force_isa, pybind11::arg("name"),
        "Force an instruction set: auto, portable, avx2, avx512, avx512_bf16.");
  m.def(
      "isa", [] { return kernels::isa_name(kernels::current_isa()); }, "Name of the instruction set in use.");
  m.def(
      "best_isa", [] { return kernels::isa_name(kernels::best_isa()); },
      "Name of the best instruction set here.");
  m.attr("DTYPES") = codes<kernels::DType>();
  m.attr("UNARY") = codes<kernels::Unary>();
  m.attr("BINARY") = codes<kernels::Binary>();
  m.attr("BROADCASTS") = codes<kernels::Broadcast>();
  m.attr("ACTIVATIONS") = codes<kernels::Activation>();
  m.attr("ROPE_LAYOUTS") = codes<kernels::RopeLayout>();
  m.attr("ROUTER_SCORES") = codes<kernels::RouterScore>();
#define MSK_BIND(name) kernels::bind_##name(m);
  MSK_FILES(MSK_BIND)
#undef MSK_BIND
}

}  // namespace mindspeed_ms

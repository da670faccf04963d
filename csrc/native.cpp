// Extension 2, `mindspeed_ms._native`: pybind11 on raw pointers. No torch, no MindSpore.
#include "native.h"

PYBIND11_MODULE(_native, m) {
  m.doc() = "Fused CPU kernels and shared-memory collectives on raw pointers.";
  auto kernels = m.def_submodule("kernels", "Fused CPU kernels.");
  mindspeed_ms::bind_kernels(kernels);
  auto comm = m.def_submodule("comm", "Shared-memory collectives.");
  mindspeed_ms::bind_comm(comm);
}

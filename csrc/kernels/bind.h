#pragma once
#include "kernels/dispatch.h"

// Each kernel file adds its functions to `_native.kernels`.
namespace mindspeed_ms::kernels {

void bind_activation(pybind11::module_& m);
void bind_cross_entropy(pybind11::module_& m);
void bind_norm(pybind11::module_& m);
void bind_strided_copy(pybind11::module_& m);
void bind_reduce(pybind11::module_& m);
void bind_optimizer(pybind11::module_& m);
void bind_embedding(pybind11::module_& m);
void bind_elementwise(pybind11::module_& m);
void bind_dropout(pybind11::module_& m);
void bind_rope(pybind11::module_& m);
void bind_softmax(pybind11::module_& m);
void bind_attention(pybind11::module_& m);
void bind_gemm(pybind11::module_& m);
void bind_moe(pybind11::module_& m);

}  // namespace mindspeed_ms::kernels

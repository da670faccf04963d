"""Activations, softmax, dropout, and their gradients."""

from __future__ import annotations

from functools import cache
from math import pi, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from mindspeed_ms.kernels import aten_nn
from mindspeed_ms.ops import csrc_forms
from mindspeed_ms.ops.dtypes import cast, torch_dtype
from mindspeed_ms.ops.names import ag, mint, ms, prim
from mindspeed_ms.ops.registry import ASCEND_FLOATS, F32, FLOATS, NATIVE, Fence, Kernel, row

aten = torch.ops.aten

_softmax_of = cache(ag.Softmax)
_log_softmax_of, _log_softmax_gradient_of = cache(ag.LogSoftmax), cache(ag.LogSoftmaxGrad)
_gelu_tanh, _gelu_tanh_grad = ag.GeLU(), ag.GeLUGrad()
_select, _zeros_like = ag.Select(), ag.ZerosLike()

# ---- sigmoid, tanh, silu, relu


def sigmoid_backward(grad: ms.Tensor, output: ms.Tensor) -> ms.Tensor:
    return ag.mul(grad, ag.mul(ag.sub(1, output), output))


def ascend_sigmoid_backward(grad: ms.Tensor, output: ms.Tensor) -> ms.Tensor:
    return prim.sigmoid_grad_op(output, grad)


row(
    "aten::sigmoid_backward",
    lambda s: aten.sigmoid_backward(s.x, s.p),
    cpu=Kernel(sigmoid_backward, FLOATS),
    ascend=Kernel(ascend_sigmoid_backward, ASCEND_FLOATS),
)


def tanh_backward(grad: ms.Tensor, output: ms.Tensor) -> ms.Tensor:
    return ag.mul(grad, ag.sub(1, ag.square(output)))


def ascend_tanh_backward(grad: ms.Tensor, output: ms.Tensor) -> ms.Tensor:
    return prim.tanh_grad_op(output, grad)


row(
    "aten::tanh_backward",
    lambda s: aten.tanh_backward(s.x, s.p),
    cpu=Kernel(tanh_backward, FLOATS),
    ascend=Kernel(ascend_tanh_backward, ASCEND_FLOATS),
)
row(
    "aten::silu",
    lambda s: F.silu(s.x),
    cpu=Kernel(ag.silu, FLOATS, (Fence("uses the imprecise exp", F32, (-0.5, 0.5), 2.4e-6),)),
    csrc=Kernel(aten_nn.silu, NATIVE),
)


def silu_backward(grad: ms.Tensor, x: ms.Tensor) -> ms.Tensor:
    s = ag.sigmoid(x)
    return ag.mul(ag.mul(grad, s), ag.add(ag.mul(x, ag.sub(1, s)), 1))


def ascend_silu_backward(grad: ms.Tensor, x: ms.Tensor) -> ms.Tensor:
    return prim.silu_grad_op(grad, x)


row(
    "aten::silu_backward",
    lambda s: aten.silu_backward(s.x, s.y),
    # ag.SiLUGrad is off by 0.4 near its zero and takes 44 ms at 256 x 512.
    cpu=Kernel(silu_backward, FLOATS, (Fence("uses the imprecise sigmoid", F32, (0, 1), 2.4e-6),)),
    ascend=Kernel(ascend_silu_backward, ASCEND_FLOATS),
    csrc=Kernel(aten_nn.silu_backward, NATIVE),
)


def threshold_backward(grad: ms.Tensor, x: ms.Tensor, threshold: float) -> ms.Tensor:
    return _select(ag.greater(x, threshold), grad, _zeros_like(grad))


def ascend_threshold_backward(grad: ms.Tensor, x: ms.Tensor, threshold: float) -> ms.Tensor:
    return prim.threshold_grad_op(grad, x, threshold)


row(
    "aten::threshold_backward",
    lambda s: aten.threshold_backward(s.x, s.y, 0),
    cpu=Kernel(threshold_backward, FLOATS),
    ascend=Kernel(ascend_threshold_backward, ASCEND_FLOATS),
)

# ---- gelu


def gelu(x: ms.Tensor, approximate: str) -> ms.Tensor:
    if approximate == "tanh":
        return _gelu_tanh(x)
    return ag.mul(ag.mul(x, 0.5), ag.add(ag.erf(ag.mul(x, sqrt(0.5))), 1))


def ascend_gelu(x: ms.Tensor, approximate: str) -> ms.Tensor:
    return prim.gelu_ext_op(x, approximate)


row(
    "aten::gelu",
    lambda s: F.gelu(s.x),
    cpu=Kernel(gelu, (torch.float32, torch.float64)),
    ascend=Kernel(ascend_gelu, ASCEND_FLOATS),
)


def gelu_backward(grad: ms.Tensor, x: ms.Tensor, approximate: str) -> ms.Tensor:
    if approximate == "tanh":
        return _gelu_tanh_grad(grad, x, _gelu_tanh(x))
    # d/dx x*Phi(x) = Phi(x) + x*phi(x); there is no MindSpore kernel for it on CPU.
    cdf = ag.mul(ag.add(ag.erf(ag.mul(x, sqrt(0.5))), 1), 0.5)
    pdf = ag.mul(ag.exp(ag.mul(ag.square(x), -0.5)), 1 / sqrt(2 * pi))
    return ag.mul(grad, ag.add(cdf, ag.mul(x, pdf)))


def ascend_gelu_backward(grad: ms.Tensor, x: ms.Tensor, approximate: str) -> ms.Tensor:
    return prim.gelu_grad_ext_op(grad, x, approximate)


row(
    "aten::gelu_backward",
    lambda s: aten.gelu_backward(s.x, s.y),
    cpu=Kernel(gelu_backward, F32),
    ascend=Kernel(ascend_gelu_backward, ASCEND_FLOATS),
    csrc=Kernel(aten_nn.gelu_backward, NATIVE),
)

# ---- softmax


def _row_sum(x: ms.Tensor, dim: int) -> ms.Tensor:
    return ag.sum_ext(x, (dim,), True, None)


def softmax(x: ms.Tensor, dim: int, half_to_float: bool) -> Any:
    return NotImplemented if half_to_float or not x.shape else _softmax_of(dim)(x)


row(
    "aten::_softmax",
    lambda s: s.x.softmax(-1),
    cpu=Kernel(softmax, FLOATS),
    csrc=csrc_forms.last_dim(aten_nn._softmax),
)


def softmax_backward(grad: ms.Tensor, output: ms.Tensor, dim: int, input_dtype: torch.dtype) -> Any:
    if torch_dtype(grad) is not input_dtype or not grad.shape:
        return NotImplemented
    weighted = ag.mul(grad, output)
    return ag.sub(weighted, ag.mul(output, _row_sum(weighted, dim)))


def ascend_softmax_backward(grad: ms.Tensor, output: ms.Tensor, dim: int, input_dtype: torch.dtype) -> Any:
    if torch_dtype(grad) is not input_dtype or not grad.shape:
        return NotImplemented
    return prim.softmax_backward_op(grad, output, dim)


row(
    "aten::_softmax_backward_data",
    lambda s: aten._softmax_backward_data(s.x, s.p, -1, s.x.dtype),
    cpu=Kernel(softmax_backward, FLOATS),
    ascend=Kernel(ascend_softmax_backward, ASCEND_FLOATS),
    csrc=csrc_forms.last_dim(aten_nn._softmax_backward_data),
)


def log_softmax(x: ms.Tensor, dim: int, half_to_float: bool) -> Any:
    return NotImplemented if half_to_float or not x.shape else _log_softmax_of(dim)(x)


row(
    "aten::_log_softmax",
    lambda s: s.x.log_softmax(-1),
    # In float64 ag.LogSoftmax and its gradient are right to float32 only.
    cpu=Kernel(
        log_softmax,
        (torch.float32, torch.float16),
        (Fence("uses the imprecise exp", F32, (2, 9), 2.4e-6),),
    ),
    csrc=csrc_forms.last_dim(aten_nn._log_softmax),
)


def log_softmax_backward(grad: ms.Tensor, output: ms.Tensor, dim: int, input_dtype: torch.dtype) -> Any:
    if torch_dtype(grad) is not input_dtype or not grad.shape:
        return NotImplemented
    return ag.sub(grad, ag.mul(ag.exp(output), _row_sum(grad, dim)))


def ascend_log_softmax_backward(
    grad: ms.Tensor, output: ms.Tensor, dim: int, input_dtype: torch.dtype
) -> Any:
    """One operator, which computes 16-bit numbers in float32."""
    if torch_dtype(grad) is not input_dtype or not grad.shape:
        return NotImplemented
    return _log_softmax_gradient_of(dim)(output, grad)


row(
    "aten::_log_softmax_backward_data",
    lambda s: aten._log_softmax_backward_data(s.x, s.p.log(), -1, s.x.dtype),
    cpu=Kernel(
        log_softmax_backward,
        (torch.float32, torch.float16),
        (Fence("uses the imprecise exp", F32, (0, 1), 5e-6),),
    ),
    ascend=Kernel(ascend_log_softmax_backward, ASCEND_FLOATS),
    csrc=csrc_forms.last_dim(aten_nn._log_softmax_backward_data),
)

# ---- dropout


def native_dropout_backward(grad: ms.Tensor, mask: ms.Tensor, scale: float) -> ms.Tensor:
    return ag.mul(ag.mul(grad, ag.Cast()(mask, grad.dtype)), scale)


def ascend_native_dropout_backward(grad: ms.Tensor, mask: ms.Tensor, scale: float) -> ms.Tensor:
    return mint.mul(mint.mul(grad, cast(mask, torch_dtype(grad))), scale)


row(
    "aten::native_dropout_backward",
    lambda s: aten.native_dropout_backward(s.x, s.mask, 2.0),
    cpu=Kernel(native_dropout_backward, FLOATS),
    ascend=Kernel(ascend_native_dropout_backward, ASCEND_FLOATS),
    mixed=True,
)

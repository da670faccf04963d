"""Matrix products.

MindSpore's CPU backend has none in bfloat16 ("Unsupported data type"): those run on route csrc, which calls
the oneDNN that MindSpore ships (:mod:`mindspeed_ms.kernels.matmul`), as large float32 ones do in route auto.

Transposed operands are read in place, by Ascend's operators as they are, on the CPU through the primitives'
transpose flags: making them contiguous costs MindSpore more than a tenth of the product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms.kernels import matmul
from mindspeed_ms.ops.names import ag, mint, ms
from mindspeed_ms.ops.registry import ASCEND_FLOATS, FLOATS, NATIVE, Kernel, row

_MATMUL = {(a, b): ag.MatMul(a, b) for a in (False, True) for b in (False, True)}
_BATCH_MATMUL = {(a, b): ag.BatchMatMul(a, b) for a in (False, True) for b in (False, True)}

_PRODUCT = Kernel(matmul.product, NATIVE) if matmul.available() else None
_ADD_PRODUCT = (
    Kernel(matmul.add_product, NATIVE, in_place=matmul.add_product_) if matmul.available() else None
)


def _rows(x: ms.Tensor) -> tuple[ms.Tensor, bool]:
    """`x` with contiguous matrices in its last two dimensions, and whether they are transposed to be so."""
    if x.is_contiguous():
        return x, False
    turned = x.swapaxes(-1, -2)
    if turned.is_contiguous():
        return turned, True
    return x.contiguous(), False


def _product(kernels: dict[tuple[bool, bool], Any], a: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    a, turn_a = _rows(a)
    b, turn_b = _rows(b)
    return kernels[turn_a, turn_b](a, b)


def mm(a: ms.Tensor, b: ms.Tensor) -> Any:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        return NotImplemented  # torch's own error
    return _product(_MATMUL, a, b)


row(
    "aten::mm",
    lambda s: torch.mm(s.x, s.y),
    cpu=Kernel(mm, FLOATS),
    ascend=Kernel(mint.mm, ASCEND_FLOATS),
    csrc=_PRODUCT,
    strided=True,
    sums=True,
)


def bmm(a: ms.Tensor, b: ms.Tensor) -> Any:
    if len(a.shape) != 3 or len(b.shape) != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        return NotImplemented
    return _product(_BATCH_MATMUL, a, b)


row(
    "aten::bmm",
    lambda s: torch.bmm(s.x.view(4, -1, s.x.shape[1]), s.y.view(4, s.x.shape[1], -1)),
    cpu=Kernel(bmm, FLOATS),
    ascend=Kernel(mint.bmm, ASCEND_FLOATS),
    csrc=_PRODUCT,
    strided=True,
    sums=True,
)


def _plus(product: Any, bias: ms.Tensor, beta: float, alpha: float) -> Any:
    if product is NotImplemented:
        return product
    if any(mine not in (1, full) for mine, full in zip(bias.shape[::-1], product.shape[::-1], strict=False)):
        return NotImplemented
    if alpha != 1:
        product = ag.mul(product, alpha)
    if beta == 0:  # NaN in an ignored bias must not spread
        return product
    return ag.add(product, bias if beta == 1 else ag.mul(bias, beta))


def _ascend_sum(operator: Callable[..., Any], product: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(bias: ms.Tensor, a: ms.Tensor, b: ms.Tensor, beta: float, alpha: float) -> Any:
        if beta == 0:  # NaN in an ignored bias must not spread
            return product(a, b) if alpha == 1 else mint.mul(product(a, b), alpha)
        return operator(bias, a, b, beta=beta, alpha=alpha)

    return kernel


def addmm(bias: ms.Tensor, a: ms.Tensor, b: ms.Tensor, beta: float, alpha: float) -> Any:
    return _plus(mm(a, b), bias, beta, alpha)


row(
    "aten::addmm",
    lambda s: torch.addmm(s.p, s.x, s.y),
    cpu=Kernel(addmm, FLOATS),
    ascend=Kernel(_ascend_sum(mint.addmm, mint.mm), ASCEND_FLOATS),
    csrc=_ADD_PRODUCT,
    strided=True,
)


def baddbmm(bias: ms.Tensor, a: ms.Tensor, b: ms.Tensor, beta: float, alpha: float) -> Any:
    return _plus(bmm(a, b), bias, beta, alpha)


row(
    "aten::baddbmm",
    lambda s: torch.baddbmm(s.p[:1, :1], s.x.view(1, *s.x.shape), s.y.view(1, *s.y.shape)),
    cpu=Kernel(baddbmm, FLOATS),
    ascend=Kernel(_ascend_sum(mint.baddbmm, mint.bmm), ASCEND_FLOATS),
    csrc=_ADD_PRODUCT,
    strided=True,
)


def _sum_of_products(a: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
    return mint.sum(mint.bmm(a, b), 0)


row(
    "aten::addbmm",
    lambda s: torch.addbmm(s.p[:4, :4], s.x.view(4, 4, -1), s.y.view(4, -1, 4)),
    ascend=Kernel(_ascend_sum(mint.addbmm, _sum_of_products), ASCEND_FLOATS),
)


def dot(a: ms.Tensor, b: ms.Tensor) -> Any:
    if len(a.shape) != 1 or a.shape != b.shape:
        return NotImplemented
    return _MATMUL[False, False](a.view(1, -1), b.view(-1, 1)).view(())


row("aten::dot", lambda s: torch.dot(s.x[0], s.y[0]), cpu=Kernel(dot, FLOATS))

"""Matrix products.

MindSpore's CPU backend has none in bfloat16 ("Unsupported data type"): those run on route csrc, which calls
the oneDNN that MindSpore ships (:mod:`mindspeed_ms.kernels.matmul`), as large float32 ones do in route auto.

Transposed operands are read in place through the primitives' transpose flags: making them contiguous costs
MindSpore more than a tenth of the product.
"""

from __future__ import annotations

from typing import Any

from mindspeed_ms.ops.names import ag, ms
from mindspeed_ms.ops.registry import FLOATS, lowering

_MATMUL = {(a, b): ag.MatMul(a, b) for a in (False, True) for b in (False, True)}
_BATCH_MATMUL = {(a, b): ag.BatchMatMul(a, b) for a in (False, True) for b in (False, True)}


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


@lowering("aten::mm", dtypes=FLOATS, strided=True)
def mm(a: ms.Tensor, b: ms.Tensor) -> Any:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        return NotImplemented  # torch's own error
    return _product(_MATMUL, a, b)


@lowering("aten::bmm", dtypes=FLOATS, strided=True)
def bmm(a: ms.Tensor, b: ms.Tensor) -> Any:
    if len(a.shape) != 3 or len(b.shape) != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        return NotImplemented
    return _product(_BATCH_MATMUL, a, b)


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


@lowering("aten::addmm", dtypes=FLOATS, strided=True)
def addmm(bias: ms.Tensor, a: ms.Tensor, b: ms.Tensor, beta: float, alpha: float) -> Any:
    return _plus(mm(a, b), bias, beta, alpha)


@lowering("aten::baddbmm", dtypes=FLOATS, strided=True)
def baddbmm(bias: ms.Tensor, a: ms.Tensor, b: ms.Tensor, beta: float, alpha: float) -> Any:
    return _plus(bmm(a, b), bias, beta, alpha)


@lowering("aten::dot", dtypes=FLOATS)
def dot(a: ms.Tensor, b: ms.Tensor) -> Any:
    if len(a.shape) != 1 or a.shape != b.shape:
        return NotImplemented
    return _MATMUL[False, False](a.view(1, -1), b.view(-1, 1)).view(())

"""Operators of a tensor and a number on target Ascend: the number is an argument of CANN's operator.

MindSpore's other forms make a tensor of it in host memory, which crosses the bus at every call. Where CANN
has no form with a number, a fill makes the tensor on the device. What CANN has as one operator rounds once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms.ops.dtypes import cast, torch_dtype
from mindspeed_ms.ops.names import ag, mint, ms, prim
from mindspeed_ms.ops.registry import ASCEND_FLOATS, BOOL, INTS, on_ascend

NUMBERS = (*ASCEND_FLOATS, *INTS)
ALL = (*NUMBERS, *BOOL)
_REDUCTIONS = ("none", "mean", "sum")


def filled(number: float, like: ms.Tensor) -> ms.Tensor:
    """A tensor of no dimensions, made on the device."""
    return mint.full((), number, dtype=like.dtype)


def _tensors(x: Any, y: Any) -> tuple[Any, Any]:
    """Both as tensors; one of them is."""
    if not isinstance(x, ms.Tensor):
        return filled(x, y), y
    return x, y if isinstance(y, ms.Tensor) else filled(y, x)


def _enter(name: str, function: Any, dtypes: tuple[torch.dtype, ...], number: bool) -> None:
    """`function` as the kernel of `name`; `number`: its second argument may be a number."""

    def kernel(x: Any, y: Any) -> Any:
        return function(x, y) if number and isinstance(x, ms.Tensor) else function(*_tensors(x, y))

    on_ascend(f"aten::{name}", dtypes=dtypes)(kernel)


for _name, _function, _number in (
    ("eq", mint.eq, True),
    ("ge", mint.ge, True),
    ("lt", mint.lt, True),
    ("gt", mint.gt, False),
    ("le", mint.le, False),
    ("ne", mint.ne, False),
):
    for _overload in ("Tensor", "Scalar"):
        _enter(f"{_name}.{_overload}", _function, ALL if _name in ("eq", "ne") else NUMBERS, _number)
for _name, _function in (("maximum", mint.maximum), ("minimum", mint.minimum)):
    _enter(_name, _function, NUMBERS, number=False)
_enter("div.Tensor", mint.div, ASCEND_FLOATS, number=True)


@on_ascend("aten::mul.Tensor", dtypes=ALL)
def mul(x: Any, y: Any) -> Any:
    return mint.mul(x, y) if isinstance(x, ms.Tensor) else mint.mul(y, x)


@on_ascend("aten::add.Tensor", dtypes=NUMBERS)
def add(x: Any, y: Any, alpha: float) -> Any:
    return mint.add(x if isinstance(x, ms.Tensor) else filled(x, y), y, alpha=alpha)


@on_ascend("aten::sub.Tensor", dtypes=NUMBERS)
def sub(x: Any, y: Any, alpha: float) -> Any:
    return mint.sub(x if isinstance(x, ms.Tensor) else filled(x, y), y, alpha=alpha)


@on_ascend("aten::pow.Tensor_Tensor", "aten::pow.Scalar")
def power(x: Any, exponent: Any) -> Any:
    return mint.pow(x, exponent)


@on_ascend("aten::pow.Tensor_Scalar")
def power_of_tensor(x: ms.Tensor, exponent: float) -> Any:
    if exponent == 2:
        return mint.square(x)
    return mint.sqrt(x) if exponent == 0.5 else mint.pow(x, exponent)


@on_ascend("aten::clamp", dtypes=NUMBERS)
def clamp(x: ms.Tensor, low: float | None, high: float | None) -> Any:
    # A NaN bound makes everything NaN in torch.
    if any(bound is not None and bound != bound for bound in (low, high)) or low is high is None:
        return NotImplemented
    return mint.clamp(x, low, high)


@on_ascend("aten::clamp_min", dtypes=NUMBERS)
def clamp_min(x: ms.Tensor, low: float) -> Any:
    return clamp(x, low, None)


@on_ascend("aten::clamp_max", dtypes=NUMBERS)
def clamp_max(x: ms.Tensor, high: float) -> Any:
    return clamp(x, None, high)


@on_ascend("aten::where.self", dtypes=ALL)
def where(condition: ms.Tensor, x: Any, y: Any) -> Any:
    return mint.where(condition, *_tensors(x, y)) if condition.dtype == ms.bool_ else NotImplemented


@on_ascend("aten::masked_fill.Scalar", "aten::masked_fill.Tensor", dtypes=ALL)
def masked_fill(x: ms.Tensor, mask: ms.Tensor, value: Any) -> Any:
    if mask.dtype != ms.bool_:
        return NotImplemented
    if isinstance(value, ms.Tensor):
        return ag.masked_fill(x, mask, cast(value, torch_dtype(x)))
    return ag.masked_fill(x, mask, filled(value, x))


@on_ascend("aten::addcmul")
def addcmul(x: ms.Tensor, y: ms.Tensor, z: ms.Tensor, value: float) -> ms.Tensor:
    return mint.addcmul(x, y, z, value=value)


@on_ascend("aten::addcdiv")
def addcdiv(x: ms.Tensor, y: ms.Tensor, z: ms.Tensor, value: float) -> ms.Tensor:
    return mint.addcdiv(x, y, z, value=value)


@on_ascend("aten::lerp.Scalar")
def lerp(start: ms.Tensor, end: ms.Tensor, weight: float) -> ms.Tensor:
    return prim.lerp_scalar_op(start, end, weight)


@on_ascend("aten::native_dropout_backward")
def native_dropout_backward(grad: ms.Tensor, mask: ms.Tensor, scale: float) -> ms.Tensor:
    return mint.mul(mint.mul(grad, cast(mask, torch_dtype(grad))), scale)


def _product(operator: Callable[..., Any], product: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(bias: ms.Tensor, a: ms.Tensor, b: ms.Tensor, beta: float, alpha: float) -> Any:
        if beta == 0:  # NaN in an ignored bias must not spread
            return product(a, b) if alpha == 1 else mint.mul(product(a, b), alpha)
        return operator(bias, a, b, beta=beta, alpha=alpha)

    return kernel


on_ascend("aten::addmm")(_product(mint.addmm, mint.mm))
on_ascend("aten::baddbmm")(_product(mint.baddbmm, mint.bmm))


@on_ascend("aten::bincount", dtypes=(torch.int64,))
def bincount(x: ms.Tensor, weights: ms.Tensor | None, minlength: int) -> Any:
    return mint.bincount(x, None, minlength) if weights is None and len(x.shape) == 1 else NotImplemented


@on_ascend("aten::native_layer_norm")
def layer_norm(
    x: ms.Tensor, shape: Any, weight: ms.Tensor | None, bias: ms.Tensor | None, eps: float
) -> tuple[ms.Tensor, ...]:
    # Without weight or bias it ends the process. Mean and reciprocal deviation in the dtype of x, as torch's
    # CPU kernel has them.
    weight = mint.ones(tuple(shape), dtype=x.dtype) if weight is None else weight
    bias = mint.zeros(tuple(shape), dtype=x.dtype) if bias is None else bias
    found = prim.layer_norm_ext_op(x, tuple(shape), weight, bias, eps)
    return found[0], *(cast(y, torch_dtype(x)) for y in found[1:])


@on_ascend("aten::native_layer_norm_backward")
def layer_norm_backward(
    grad: ms.Tensor,
    x: ms.Tensor,
    shape: Any,
    mean: ms.Tensor,
    rstd: ms.Tensor,
    weight: ms.Tensor | None,
    bias: ms.Tensor | None,
    wanted: Any,
) -> tuple[ms.Tensor | None, ...]:
    statistics = (cast(y, torch.float32) for y in (mean, rstd))
    filled_in = (mint.ones(tuple(shape), dtype=x.dtype) if y is None else y for y in (weight, bias))
    found = prim.layer_norm_grad_ext_op(grad, x, tuple(shape), *statistics, *filled_in, (1, 1, 1))
    return tuple(y if want else None for y, want in zip(found, wanted, strict=True))


@on_ascend("aten::nll_loss_forward", mixed=True)
def nll_loss_forward(
    x: ms.Tensor, target: ms.Tensor, weight: ms.Tensor | None, reduction: int, ignore_index: int
) -> Any:
    if len(x.shape) != 2:
        return NotImplemented
    weight = mint.ones(x.shape[1], dtype=x.dtype) if weight is None else weight
    return ag.nllloss_impl(x, target, weight, _REDUCTIONS[reduction], ignore_index)


@on_ascend("aten::nll_loss_backward", mixed=True)
def nll_loss_backward(
    grad: ms.Tensor,
    x: ms.Tensor,
    target: ms.Tensor,
    weight: ms.Tensor | None,
    reduction: int,
    ignore_index: int,
    total: ms.Tensor,
) -> Any:
    if len(x.shape) != 2:
        return NotImplemented
    weight = mint.ones(x.shape[1], dtype=x.dtype) if weight is None else weight
    return ag.nllloss_grad_impl(x, grad, target, weight, total, _REDUCTIONS[reduction], ignore_index)

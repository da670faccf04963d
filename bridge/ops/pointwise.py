"""Elementwise arithmetic, comparison and selection.

Broadcasting is the MindSpore kernels' own; type promotion happens before (`promotes`). Scalars of the schema
are Python numbers. Kernels that round worse than torch's are in the table for strict mode and listed in
:mod:`.fences`, which keeps them out of route auto.
"""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.ops.names import ag, mint, ms, ops
from mindspeed_ms.ops.registry import ALL, BOOL, FLOATS, INTS, declare, lowering

NUMBERS = FLOATS + INTS

_real_div, _select, _zeros_like = ag.RealDiv(), ag.Select(), ag.ZerosLike()
_not, _and, _or = ag.LogicalNot(), ag.LogicalAnd(), ag.LogicalOr()
_full_like = ops.full_like

UNARY: dict[str, tuple[Any, tuple[torch.dtype, ...]]] = {
    "abs": (ag.abs, NUMBERS),
    "ceil": (ag.ceil, FLOATS),
    "cos": (ag.cos, FLOATS),
    "erf": (ag.erf, FLOATS),
    "exp": (ag.exp, FLOATS),
    "expm1": (ag.expm1, FLOATS),
    "floor": (ag.floor, FLOATS),
    "isfinite": (ag.isfinite, FLOATS),
    "isinf": (ops.isinf, FLOATS),
    "isnan": (ops.isnan, FLOATS),
    "log": (ag.log, FLOATS),
    "log1p": (ag.log1p, FLOATS),
    "logical_not": (_not, BOOL),
    "neg": (ag.neg, NUMBERS),
    "reciprocal": (ops.reciprocal, FLOATS),
    "relu": (ag.relu, NUMBERS),
    "round": (ops.round, FLOATS),
    "rsqrt": (ag.rsqrt, FLOATS),
    "sigmoid": (ag.sigmoid, FLOATS),
    "sign": (ag.sign, NUMBERS),
    "silu": (ag.silu, FLOATS),
    "sin": (ag.sin, FLOATS),
    "sqrt": (ag.sqrt, FLOATS),
    "tanh": (ag.tanh, FLOATS),
    "trunc": (ag.trunc, FLOATS),
}
"""Functional operator without overloads -> MindSpore operator, dtypes."""

COMPARISONS: dict[str, Any] = {
    "eq": ag.equal,
    "ge": ag.greater_equal,
    "gt": ag.greater,
    "le": ag.less_equal,
    "lt": ag.less,
    "ne": ag.not_equal,
}

BINARY: dict[str, tuple[Any, tuple[torch.dtype, ...]]] = {
    "bitwise_and.Tensor": (_and, BOOL),
    "bitwise_or.Tensor": (_or, BOOL),
    "logical_and": (_and, BOOL),
    "logical_or": (_or, BOOL),
    "div.Tensor": (_real_div, FLOATS),
    "maximum": (ag.maximum, NUMBERS),
    "minimum": (ag.minimum, NUMBERS),
    "mul.Tensor": (ag.mul, ALL),
    "pow.Tensor_Tensor": (ag.pow, FLOATS),
}
"""Operators whose schema is (self, other)."""

for _name, (_function, _dtypes) in UNARY.items():
    declare(f"aten::{_name}", _function, _dtypes)
for _name, (_function, _dtypes) in BINARY.items():
    declare(f"aten::{_name}", _function, _dtypes, promotes=True)
for _name, _function in COMPARISONS.items():
    for _overload in ("Tensor", "Scalar"):
        declare(
            f"aten::{_name}.{_overload}", _function, ALL if _name in ("eq", "ne") else NUMBERS, promotes=True
        )

declare("aten::bitwise_not", _not, BOOL)


@lowering("aten::add.Tensor", dtypes=NUMBERS, promotes=True)
def add(x: Any, y: Any, alpha: float) -> Any:
    return ag.add(x, y if alpha == 1 else ag.mul(y, alpha))


@lowering("aten::sub.Tensor", dtypes=NUMBERS, promotes=True)
def sub(x: Any, y: Any, alpha: float) -> Any:
    return ag.sub(x, y if alpha == 1 else ag.mul(y, alpha))


@lowering("aten::pow.Tensor_Scalar", dtypes=FLOATS, promotes=True)
def power(x: ms.Tensor, exponent: float) -> ms.Tensor:
    if exponent == 2:
        return ag.square(x)
    return ag.sqrt(x) if exponent == 0.5 else ag.pow(x, exponent)


@lowering("aten::pow.Scalar", dtypes=FLOATS, key_arg=1)
def power_of_number(base: float, exponent: ms.Tensor) -> ms.Tensor:
    return ag.pow(base, exponent)


@lowering("aten::clamp", dtypes=NUMBERS, promotes=True)
def clamp(x: ms.Tensor, low: float | None, high: float | None) -> Any:
    # A NaN bound makes everything NaN in torch; MindSpore's maximum ignores it.
    if any(bound is not None and bound != bound for bound in (low, high)) or low is high is None:
        return NotImplemented
    x = x if low is None else ag.maximum(x, low)
    return x if high is None else ag.minimum(x, high)


@lowering("aten::clamp_min", dtypes=NUMBERS, promotes=True)
def clamp_min(x: ms.Tensor, low: float) -> Any:
    return clamp(x, low, None)


@lowering("aten::clamp_max", dtypes=NUMBERS, promotes=True)
def clamp_max(x: ms.Tensor, high: float) -> Any:
    return clamp(x, None, high)


@lowering("aten::where.self", dtypes=ALL, key_arg=1, promotes=True)
def where(condition: ms.Tensor, x: Any, y: Any) -> Any:
    if condition.dtype != ms.bool_:
        return NotImplemented
    return _select(condition, x, y)


@lowering("aten::masked_fill.Scalar", "aten::masked_fill.Tensor", dtypes=ALL, mixed=True)
def masked_fill(x: ms.Tensor, mask: ms.Tensor, value: Any) -> Any:
    if mask.dtype != ms.bool_:
        return NotImplemented
    return _select(mask, cast_number(value, x), x)


def cast_number(value: Any, like: ms.Tensor) -> Any:
    """A number, or 0-dim tensor, for use beside `like` without changing its dtype."""
    if isinstance(value, ms.Tensor):
        return ag.Cast()(value, like.dtype)
    return ms.Tensor(value, like.dtype)


@lowering("aten::addcmul", dtypes=FLOATS)
def addcmul(x: ms.Tensor, y: ms.Tensor, z: ms.Tensor, value: float) -> ms.Tensor:
    product = ag.mul(y, z)
    return ag.add(x, product if value == 1 else ag.mul(product, value))


@lowering("aten::addcdiv", dtypes=FLOATS)
def addcdiv(x: ms.Tensor, y: ms.Tensor, z: ms.Tensor, value: float) -> ms.Tensor:
    # The factor first, as torch's kernel rounds.
    return ag.add(x, _real_div(y if value == 1 else ag.mul(y, value), z))


@lowering("aten::lerp.Scalar", dtypes=FLOATS)
def lerp(start: ms.Tensor, end: ms.Tensor, weight: float) -> ms.Tensor:
    step = ag.sub(end, start)
    # torch's two formulas: exact at both ends.
    if abs(weight) < 0.5:
        return ag.add(start, ag.mul(step, weight))
    return ag.sub(end, ag.mul(step, 1 - weight))


@lowering("aten::sigmoid_backward", dtypes=FLOATS)
def sigmoid_backward(grad: ms.Tensor, output: ms.Tensor) -> ms.Tensor:
    return ag.mul(grad, ag.mul(ag.sub(1, output), output))


@lowering("aten::tanh_backward", dtypes=FLOATS)
def tanh_backward(grad: ms.Tensor, output: ms.Tensor) -> ms.Tensor:
    return ag.mul(grad, ag.sub(1, ag.square(output)))


@lowering("aten::silu_backward", dtypes=FLOATS)
def silu_backward(grad: ms.Tensor, x: ms.Tensor) -> ms.Tensor:
    s = ag.sigmoid(x)
    return ag.mul(ag.mul(grad, s), ag.add(ag.mul(x, ag.sub(1, s)), 1))


@lowering("aten::threshold_backward", dtypes=FLOATS)
def threshold_backward(grad: ms.Tensor, x: ms.Tensor, threshold: float) -> ms.Tensor:
    return _select(ag.greater(x, threshold), grad, _zeros_like(grad))


@lowering("aten::isclose", dtypes=FLOATS)
def isclose(x: ms.Tensor, y: ms.Tensor, rtol: float, atol: float, equal_nan: bool) -> Any:
    return mint.isclose(x, y, rtol, atol, equal_nan)


@lowering("aten::zero", dtypes=ALL)
def zero(x: ms.Tensor) -> ms.Tensor:
    return _zeros_like(x)


@lowering("aten::fill.Scalar", dtypes=ALL)
def fill(x: ms.Tensor, value: float) -> ms.Tensor:
    return _full_like(x, value)


@lowering("aten::native_dropout_backward", dtypes=FLOATS, mixed=True)
def native_dropout_backward(grad: ms.Tensor, mask: ms.Tensor, scale: float) -> ms.Tensor:
    return ag.mul(ag.mul(grad, ag.Cast()(mask, grad.dtype)), scale)

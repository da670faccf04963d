"""Elementwise arithmetic, comparison, rounding and logic.

Broadcasting is the MindSpore kernels' own; type promotion happens before (`promotes`). Scalars of the schema
are Python numbers. Where route auto never takes a kernel of MindSpore's CPU backend that rounds worse than
torch's, route strict does.

On Ascend the dtypes are those of CANN's pages for Atlas A2 (ops-math: aclnnDivMod, aclnnFmodTensor,
aclnnBitwiseXorTensor, ...), without integers of 8 and 16 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.kernels import aten
from mindspeed_ms.ops import ascend_numbers, csrc_forms
from mindspeed_ms.ops.ascend_numbers import filled
from mindspeed_ms.ops.dtypes import is_integral
from mindspeed_ms.ops.names import ag, mint, ms, ops, prim
from mindspeed_ms.ops.registry import (
    ALL,
    ASCEND_ALL,
    ASCEND_FLOATS,
    ASCEND_NUMBERS,
    BOOL,
    FLOATS,
    INTS,
    NUMBERS,
    Fence,
    Kernel,
    Sample,
    row,
)

F16, F32 = (torch.float16,), (torch.float32,)

_not, _and, _or = ag.LogicalNot(), ag.LogicalAnd(), ag.LogicalOr()
_real_div = ag.RealDiv()


def _call(name: str, *fields: str) -> Sample:
    """The sample call of a function of torch by its name."""
    return lambda s: getattr(torch, name)(*(getattr(s, field) for field in fields))


POSITIVE = frozenset(("log", "log1p", "reciprocal", "rsqrt", "sqrt"))
"""Functions that are not defined, or without bound, for some of the numbers of a normal sample."""

# ---- one tensor


def _unary(
    name: str, function: Any, fence: Fence | None = None, *, ascend: Any = None, csrc: bool = False
) -> None:
    row(
        f"aten::{name}",
        _call(name, "p" if name in POSITIVE else "x"),
        cpu=Kernel(function, FLOATS, (fence,) if fence else ()),
        ascend=Kernel(ascend or function, ASCEND_FLOATS),
        csrc=csrc_forms.unary(name) if csrc else None,
    )


_unary("ceil", ag.ceil)
_unary("cos", ag.cos)
_unary("erf", ag.erf)
_unary("exp", ag.exp, Fence("the larger, the less precise", F32, (-80, 80), 3e-5), csrc=True)
_unary("expm1", ag.expm1, Fence("near zero: computed as exp(x) - 1", F32, (-1e-5, 1e-5), 1e-2))
_unary("floor", ag.floor)
_unary("isfinite", ag.isfinite)
_unary("isinf", ops.isinf, ascend=mint.isinf)
_unary("isnan", ops.isnan, ascend=lambda x: mint.not_equal(x, x))
_unary("log", ag.log, Fence("next to one", F32, (0.9999, 1.0001), 3e-3))
_unary("log1p", ag.log1p)
_unary("reciprocal", ops.reciprocal, ascend=mint.reciprocal, csrc=True)
_unary("round", ops.round, ascend=mint.round)
_unary("rsqrt", ag.rsqrt, csrc=True)
_unary("sigmoid", ag.sigmoid, Fence("uses the imprecise exp", F32, (0, 1), 2.4e-6), csrc=True)
_unary("sin", ag.sin)
_unary("sqrt", ag.sqrt, csrc=True)
_unary("tanh", ag.tanh, Fence("clamps its argument near +-5", F32, (4, 6), 1.5e-4), csrc=True)
_unary("trunc", ag.trunc)

for _name, _function, _csrc in (
    ("abs", ag.abs, True),
    ("neg", ag.neg, True),
    ("relu", ag.relu, True),
    ("sign", ag.sign, False),
):
    row(
        f"aten::{_name}",
        _call(_name, "x"),
        cpu=Kernel(_function, NUMBERS),
        csrc=csrc_forms.unary(_name) if _csrc else None,
    )

# ---- two


def _comparison(name: str, cpu: Any, ascend: Any, number: bool, bools: bool = False) -> None:
    on_cpu = Kernel(cpu, ALL if bools else NUMBERS)
    on_ascend = Kernel(ascend_numbers.binary(ascend, number=number), ASCEND_ALL if bools else ASCEND_NUMBERS)
    row(f"aten::{name}.Tensor", _call(name, "x", "p"), cpu=on_cpu, ascend=on_ascend, promotes=True)
    # True is a number that leaves every dtype as it is.
    row(
        f"aten::{name}.Scalar",
        lambda s: getattr(torch, name)(s.x, True),
        cpu=on_cpu,
        ascend=on_ascend,
        promotes=True,
    )


_comparison("eq", ag.equal, mint.eq, number=True, bools=True)
_comparison("ge", ag.greater_equal, mint.ge, number=True)
_comparison("gt", ag.greater, mint.gt, number=False)
_comparison("le", ag.less_equal, mint.le, number=False)
_comparison("lt", ag.less, mint.lt, number=True)
_comparison("ne", ag.not_equal, mint.ne, number=False, bools=True)


def _connective(verb: str, cpu: Any) -> None:
    """The two operators of a connective: `logical_` takes numbers as true or false, `bitwise_` their bits."""
    on_cpu = Kernel(cpu, BOOL) if cpu else None
    of_truth = Kernel(getattr(mint, f"logical_{verb}"), ASCEND_ALL)
    of_bits = Kernel(ascend_numbers.binary(getattr(mint, f"bitwise_{verb}"), number=True), (*INTS, *BOOL))
    for name, operator, ascend in (
        (f"logical_{verb}", "", of_truth),
        (f"bitwise_{verb}", ".Tensor", of_bits),
    ):
        row(f"aten::{name}{operator}", _call(name, "x", "y"), cpu=on_cpu, ascend=ascend, promotes=True)


_connective("and", _and)
_connective("or", _or)
_connective("xor", None)
row(
    "aten::logical_not",
    lambda s: torch.logical_not(s.x),
    cpu=Kernel(_not, BOOL),
    ascend=Kernel(mint.logical_not, ASCEND_ALL),
)
row(
    "aten::bitwise_not",
    lambda s: torch.bitwise_not(s.x),
    cpu=Kernel(_not, BOOL),
    ascend=Kernel(mint.bitwise_not, (*INTS, *BOOL)),
)


def _sum(name: str, on_cpu: Any, on_ascend: Any) -> None:
    """`alpha` times the second argument, added or taken away."""

    def cpu(x: Any, y: Any, alpha: float) -> Any:
        return on_cpu(x, y if alpha == 1 else ag.mul(y, alpha))

    def ascend(x: Any, y: Any, alpha: float) -> Any:
        return on_ascend(x if isinstance(x, ms.Tensor) else filled(x, y), y, alpha=alpha)

    def in_place(x: ms.Tensor, y: Any, alpha: float) -> ms.Tensor:
        return getattr(x, f"{name}_")(y, alpha=alpha)

    row(
        f"aten::{name}.Tensor",
        _call(name, "x", "p"),
        cpu=Kernel(cpu, NUMBERS),
        ascend=Kernel(ascend, ASCEND_NUMBERS, in_place=in_place, widens=True),
        csrc=csrc_forms.binary(name),
        promotes=True,
    )


_sum("add", ag.add, mint.add)
_sum("sub", ag.sub, mint.sub)


def ascend_mul(x: Any, y: Any) -> Any:
    return mint.mul(x, y) if isinstance(x, ms.Tensor) else mint.mul(y, x)


row(
    "aten::mul.Tensor",
    lambda s: torch.mul(s.x, s.p),
    cpu=Kernel(ag.mul, ALL),
    ascend=Kernel(ascend_mul, ASCEND_ALL, in_place=ms.Tensor.mul_),
    csrc=csrc_forms.binary("mul"),
    promotes=True,
)


def ascend_divide_in_place(x: ms.Tensor, y: Any) -> Any:
    # The quotient of integers is none: torch says so.
    return x.div_(y) if x.is_floating_point() else NotImplemented


row(
    "aten::div.Tensor",
    lambda s: torch.div(s.x, s.p),
    cpu=Kernel(_real_div, FLOATS),
    ascend=Kernel(
        ascend_numbers.binary(mint.div, number=True), ASCEND_NUMBERS, in_place=ascend_divide_in_place
    ),
    csrc=csrc_forms.binary("div"),
    promotes=True,
)


def ascend_div_mode(x: Any, y: Any, rounding_mode: str | None) -> Any:
    x = x if isinstance(x, ms.Tensor) else filled(x, y)
    return mint.div(x, y, rounding_mode=rounding_mode)


def ascend_floor_divide(x: Any, y: Any) -> Any:
    return ascend_div_mode(x, y, "floor")


for _name, _sample, _ascend in (
    ("div.Tensor_mode", lambda s: torch.div(s.x, s.p, rounding_mode="trunc"), ascend_div_mode),
    ("floor_divide", _call("floor_divide", "x", "p"), ascend_floor_divide),
    ("remainder.Tensor", _call("remainder", "x", "p"), ascend_numbers.binary(mint.remainder, number=True)),
    ("fmod.Tensor", _call("fmod", "x", "p"), ascend_numbers.binary(mint.fmod, number=True)),
):
    row(f"aten::{_name}", _sample, ascend=Kernel(_ascend, ASCEND_NUMBERS), promotes=True)


def ascend_remainder_of_number(x: float, y: ms.Tensor) -> Any:
    # A fraction of an integer tensor is torch's default floating dtype.
    return NotImplemented if isinstance(x, float) and is_integral(y) else mint.remainder(filled(x, y), y)


row(
    "aten::remainder.Scalar_Tensor",
    lambda s: torch.remainder(7, s.p),
    ascend=Kernel(ascend_remainder_of_number, ASCEND_NUMBERS),
    key_arg=1,
)
for _name, _cpu, _ascend in (
    ("maximum", ag.maximum, mint.maximum),
    ("minimum", ag.minimum, mint.minimum),
):
    row(
        f"aten::{_name}",
        _call(_name, "x", "y"),
        cpu=Kernel(_cpu, NUMBERS),
        ascend=Kernel(ascend_numbers.binary(_ascend), ASCEND_NUMBERS),
        promotes=True,
    )
row(
    "aten::pow.Tensor_Tensor",
    lambda s: s.p.pow(s.y),
    cpu=Kernel(ag.pow, FLOATS),
    ascend=Kernel(mint.pow, ASCEND_FLOATS),
    promotes=True,
)


def power(x: ms.Tensor, exponent: float) -> ms.Tensor:
    if exponent == 2:
        return ag.square(x)
    return ag.sqrt(x) if exponent == 0.5 else ag.pow(x, exponent)


def ascend_power_of_tensor(x: ms.Tensor, exponent: float) -> Any:
    if exponent < 0 and is_integral(x):
        return NotImplemented  # torch's own error
    if exponent == 2:
        return mint.square(x)
    return mint.sqrt(x) if exponent == 0.5 else mint.pow(x, exponent)


row(
    "aten::pow.Tensor_Scalar",
    lambda s: s.p.pow(1.5),
    cpu=Kernel(power, FLOATS),
    ascend=Kernel(ascend_power_of_tensor, ASCEND_NUMBERS),
    promotes=True,
)


def power_of_number(base: float, exponent: ms.Tensor) -> ms.Tensor:
    return ag.pow(base, exponent)


row(
    "aten::pow.Scalar",
    lambda s: torch.pow(1.5, s.y),
    cpu=Kernel(power_of_number, FLOATS),
    ascend=Kernel(mint.pow, ASCEND_FLOATS),
    key_arg=1,
)

# ---- bounds


def clamp(x: ms.Tensor, low: float | None, high: float | None) -> Any:
    # A NaN bound makes everything NaN in torch; MindSpore's maximum ignores it.
    if any(bound is not None and bound != bound for bound in (low, high)) or low is high is None:
        return NotImplemented
    x = x if low is None else ag.maximum(x, low)
    return x if high is None else ag.minimum(x, high)


def ascend_clamp(x: ms.Tensor, low: float | None, high: float | None) -> Any:
    # A NaN bound makes everything NaN in torch.
    if any(bound is not None and bound != bound for bound in (low, high)) or low is high is None:
        return NotImplemented
    return mint.clamp(x, low, high)


row(
    "aten::clamp",
    lambda s: s.x.clamp(-1, 1),
    cpu=Kernel(clamp, NUMBERS),
    ascend=Kernel(ascend_clamp, ASCEND_NUMBERS),
    promotes=True,
)


def clamp_min(x: ms.Tensor, low: float) -> Any:
    return clamp(x, low, None)


def ascend_clamp_min(x: ms.Tensor, low: float) -> Any:
    return ascend_clamp(x, low, None)


row(
    "aten::clamp_min",
    lambda s: s.x.clamp_min(0),
    cpu=Kernel(clamp_min, NUMBERS),
    ascend=Kernel(ascend_clamp_min, ASCEND_NUMBERS),
    promotes=True,
)


def clamp_max(x: ms.Tensor, high: float) -> Any:
    return clamp(x, None, high)


def ascend_clamp_max(x: ms.Tensor, high: float) -> Any:
    return ascend_clamp(x, None, high)


row(
    "aten::clamp_max",
    lambda s: s.x.clamp_max(0),
    cpu=Kernel(clamp_max, NUMBERS),
    ascend=Kernel(ascend_clamp_max, ASCEND_NUMBERS),
    promotes=True,
)


def ascend_clamp_tensor(x: ms.Tensor, low: Any, high: Any) -> Any:
    x = x if low is None else mint.maximum(x, low)
    return x if high is None else mint.minimum(x, high)


row(
    "aten::clamp.Tensor",
    lambda s: torch.clamp(s.x, -s.p if s.p.is_floating_point() else s.p - 4, s.p),
    ascend=Kernel(ascend_clamp_tensor, ASCEND_NUMBERS),
    promotes=True,
)
for _name, _ascend in (("clamp_min", mint.maximum), ("clamp_max", mint.minimum)):
    row(
        f"aten::{_name}.Tensor",
        _call(_name, "x", "y"),
        ascend=Kernel(_ascend, ASCEND_NUMBERS),
        promotes=True,
    )


def isclose(x: ms.Tensor, y: ms.Tensor, rtol: float, atol: float, equal_nan: bool) -> Any:
    return mint.isclose(x, y, rtol, atol, equal_nan)


row(
    "aten::isclose",
    lambda s: torch.isclose(s.x, s.y, atol=0.5),
    cpu=Kernel(isclose, FLOATS),
    ascend=Kernel(isclose, ASCEND_ALL),
)
row("aten::equal", lambda s: torch.tensor(torch.equal(s.x, s.y)), ascend=Kernel(mint.equal, ASCEND_ALL))

# ---- three


def addcmul(x: ms.Tensor, y: ms.Tensor, z: ms.Tensor, value: float) -> ms.Tensor:
    product = ag.mul(y, z)
    return ag.add(x, product if value == 1 else ag.mul(product, value))


def ascend_addcmul(x: ms.Tensor, y: ms.Tensor, z: ms.Tensor, value: float) -> ms.Tensor:
    return mint.addcmul(x, y, z, value=value)


row(
    "aten::addcmul",
    lambda s: torch.addcmul(s.x, s.y, s.p, value=0.5),
    cpu=Kernel(addcmul, FLOATS),
    ascend=Kernel(ascend_addcmul, ASCEND_FLOATS),
    csrc=csrc_forms.of_lists(aten._foreach_addcmul_, 3),
)


def addcdiv(x: ms.Tensor, y: ms.Tensor, z: ms.Tensor, value: float) -> ms.Tensor:
    # The factor first, as torch's kernel rounds.
    return ag.add(x, _real_div(y if value == 1 else ag.mul(y, value), z))


def ascend_addcdiv(x: ms.Tensor, y: ms.Tensor, z: ms.Tensor, value: float) -> ms.Tensor:
    return mint.addcdiv(x, y, z, value=value)


row(
    "aten::addcdiv",
    lambda s: torch.addcdiv(s.x, s.y, s.p, value=0.5),
    cpu=Kernel(addcdiv, FLOATS),
    ascend=Kernel(ascend_addcdiv, ASCEND_FLOATS),
    csrc=csrc_forms.of_lists(aten._foreach_addcdiv_, 3),
)


def lerp(start: ms.Tensor, end: ms.Tensor, weight: float) -> ms.Tensor:
    step = ag.sub(end, start)
    # torch's two formulas: exact at both ends.
    if abs(weight) < 0.5:
        return ag.add(start, ag.mul(step, weight))
    return ag.sub(end, ag.mul(step, 1 - weight))


def ascend_lerp(start: ms.Tensor, end: ms.Tensor, weight: float) -> ms.Tensor:
    return prim.lerp_scalar_op(start, end, weight)


row(
    "aten::lerp.Scalar",
    lambda s: torch.lerp(s.x, s.y, 0.1),
    cpu=Kernel(lerp, FLOATS),
    ascend=Kernel(ascend_lerp, ASCEND_FLOATS),
    csrc=csrc_forms.of_lists(aten._foreach_lerp_, 2),
)


def ascend_lerp_of_tensor(start: ms.Tensor, end: ms.Tensor, weight: ms.Tensor) -> ms.Tensor:
    return mint.lerp(start, end, weight)


row(
    "aten::lerp.Tensor",
    lambda s: torch.lerp(s.x, s.y, s.p),
    ascend=Kernel(ascend_lerp_of_tensor, ASCEND_FLOATS),
)

"""Forms of csrc's kernels that rows share (mindspeed_ms.kernels.aten, aten_nn).

The kernels take contiguous tensors of one native dtype, so the functions here only sort out what they do not
take. In-place kernels write the first argument where it lies; the C++ kernel calls them where that is
contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mindspeed_ms.kernels import aten
from mindspeed_ms.ops.registry import F32, NATIVE, Kernel

Tensor = torch.Tensor
Function = Callable[..., Any]

COMMUTES = frozenset({"add", "mul"})


def unary(name: str) -> Kernel:
    """The kernel of an elementwise function of one tensor."""
    return Kernel(getattr(aten, name), NATIVE, in_place=getattr(aten, f"{name}_"))


def binary(name: str) -> Kernel:
    """``(x, other[, alpha])`` with `other` a number or repeating along `x`."""
    call, call_in_place = _binary(name)
    return Kernel(call, NATIVE, in_place=call_in_place, widens=True)


def _binary(name: str) -> tuple[Function, Function]:
    """Out of place and in place: ``(x, other[, alpha])`` with `other` a number or repeating along `x`."""
    new, in_place = getattr(aten, name), getattr(aten, f"{name}_")

    def fits(x: Any, other: Any) -> bool:
        if not isinstance(x, Tensor):
            return False
        return not isinstance(other, Tensor) or aten.broadcast_kind(x, other) is not None

    def call(x: Any, other: Any, alpha: float = 1) -> Any:
        if fits(x, other):
            return new(x, other, alpha)
        # The first one decides the result's dtype.
        same = not isinstance(x, Tensor) or not isinstance(other, Tensor) or x.dtype == other.dtype
        if name in COMMUTES and alpha == 1 and same and fits(other, x):
            return new(other, x)
        return NotImplemented

    def call_in_place(x: Tensor, other: Any, alpha: float = 1) -> Any:
        return in_place(x, other, alpha) if fits(x, other) else NotImplemented

    return call, call_in_place


def last_dim(kernel: Function) -> Kernel:
    """For ``(tensors..., dim, dtype)`` kernels that run over the last dimension and keep the dtype."""

    def call(*args: Any) -> Any:
        *tensors, dim, dtype = args
        x = tensors[-1]
        if x.dim() == 0 or dim not in (-1, x.dim() - 1) or dtype not in (False, x.dtype):
            return NotImplemented
        return kernel(*tensors, dim)

    return Kernel(call, NATIVE)


def some_dims(kernel: Function) -> Kernel:
    """For reductions ``(x, dim, keepdim, dtype)``: dimensions at one end, no change of dtype."""

    def call(x: Tensor, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None) -> Any:
        if dtype not in (None, x.dtype) or aten.reduce_kind(x, dim) is None:
            return NotImplemented
        return kernel(x, dim, keepdim)

    return Kernel(call, F32)


def all_dims(kernel: Function) -> Kernel:
    """For reductions ``(x, dtype)`` of everything."""

    def call(x: Tensor, dtype: torch.dtype | None) -> Any:
        return kernel(x) if dtype in (None, x.dtype) else NotImplemented

    return Kernel(call, F32)


def of_lists(kernel: Function, tensors: int) -> Kernel:
    """For ``(x, tensors..., number)`` by a kernel that works on lists, in place: as lists of one."""

    def in_place(*args: Any) -> Any:
        given, number = args[:tensors], args[tensors]
        if any(t.shape != given[0].shape for t in given):
            return NotImplemented
        return kernel(*([t] for t in given), number)

    def call(x: Tensor, *others: Any) -> Any:
        if any(t.shape != x.shape for t in others[: tensors - 1]):
            return NotImplemented
        out = aten.clone(x)
        in_place(out, *others)
        return out

    return Kernel(call, F32, in_place=in_place)

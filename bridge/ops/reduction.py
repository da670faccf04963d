"""Sums, means, extrema, norms and scans."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from mindspeed_ms.kernels import aten
from mindspeed_ms.ops import csrc_forms
from mindspeed_ms.ops.dtypes import cast, dtype_of, is_integral
from mindspeed_ms.ops.names import ag, mint, ms, prim
from mindspeed_ms.ops.registry import (
    ALL,
    ASCEND_ALL,
    ASCEND_FLOATS,
    ASCEND_NUMBERS,
    BOOL,
    F32,
    FLOATS,
    NUMBERS,
    Kernel,
    row,
)

Tensor = torch.Tensor

_cumsum = ag.CumSum()


def _axes(x: ms.Tensor, dim: Sequence[int] | None) -> tuple[int, ...] | None:
    """Dimensions to reduce; None for all of them."""
    return tuple(dim) if dim and len(x.shape) else None


@cache
def _reduce(primitive: Any, keepdim: bool) -> Any:
    return primitive(keepdim)


# ---- sums and means


def sum_dim(x: ms.Tensor, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None) -> ms.Tensor:
    axes = _axes(x, dim)
    x = cast(x, dtype if dtype is not None else torch.int64 if is_integral(x) else None)
    if axes is None and not keepdim and len(x.shape) > 1:
        # In two steps: MindSpore's sum over everything is forty times slower than over one dimension.
        return cast(ag.sum_ext(ag.sum_ext(x, (-1,), False, None), None, False, None), dtype)
    return cast(ag.sum_ext(x, axes, keepdim, None), dtype)  # of int32, too, MindSpore's is int64


def ascend_sum_dim(x: ms.Tensor, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None) -> Any:
    return ag.sum_ext(x, _axes(x, dim), keepdim, None if dtype is None else dtype_of(dtype))


row(
    "aten::sum.dim_IntList",
    lambda s: s.p.sum(-1),
    cpu=Kernel(sum_dim, ALL),
    ascend=Kernel(ascend_sum_dim, ASCEND_ALL),
    csrc=csrc_forms.some_dims(aten.sum),
    sums=True,
)


def sum_all(x: ms.Tensor, dtype: torch.dtype | None) -> ms.Tensor:
    return sum_dim(x, None, False, dtype)


def ascend_sum_all(x: ms.Tensor, dtype: torch.dtype | None) -> ms.Tensor:
    return ascend_sum_dim(x, None, False, dtype)


row(
    "aten::sum",
    lambda s: s.p.sum(),
    cpu=Kernel(sum_all, ALL),
    ascend=Kernel(ascend_sum_all, ASCEND_ALL),
    csrc=csrc_forms.all_dims(aten.sum),
    sums=True,
)


def mean_dim(x: ms.Tensor, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None) -> Any:
    if dtype is not None and not dtype.is_floating_point:
        return NotImplemented
    return ag.mean_ext(cast(x, dtype), _axes(x, dim), keepdim, None)


row(
    "aten::mean.dim",
    lambda s: s.p.mean(-1),
    cpu=Kernel(mean_dim, FLOATS),
    csrc=csrc_forms.some_dims(aten.mean),
)


def mean_all(x: ms.Tensor, dtype: torch.dtype | None) -> Any:
    return mean_dim(x, None, False, dtype)


row("aten::mean", lambda s: s.p.mean(), cpu=Kernel(mean_all, FLOATS), csrc=csrc_forms.all_dims(aten.mean))


def cumsum(x: ms.Tensor, dim: int, dtype: torch.dtype | None) -> Any:
    if not x.shape:
        return NotImplemented
    return _cumsum(cast(x, dtype if dtype is not None else torch.int64 if is_integral(x) else None), dim)


def ascend_cumsum(x: ms.Tensor, dim: int, dtype: torch.dtype | None) -> Any:
    if not x.shape:
        return NotImplemented
    return mint.cumsum(cast(x, dtype if dtype is not None else torch.int64 if is_integral(x) else None), dim)


row(
    "aten::cumsum",
    lambda s: s.p.cumsum(-1),
    cpu=Kernel(cumsum, NUMBERS),
    ascend=Kernel(ascend_cumsum, ASCEND_NUMBERS),
)


def vector_norm(
    x: ms.Tensor, order: float, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None
) -> Any:
    x = cast(x, dtype)
    if order == 2:
        return ag.sqrt(sum_dim(ag.square(x), dim, keepdim, None))
    if order == 1:
        return sum_dim(ag.abs(x), dim, keepdim, None)
    if order == float("inf"):
        return mint.amax(ag.abs(x), _axes(x, dim) or (), keepdim)
    return NotImplemented


def ascend_vector_norm(
    x: ms.Tensor, order: float, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None
) -> Any:
    """One operator, which sums 16-bit numbers in float32, for the orders that MindSpore gives to it."""
    if order not in (0, 1, 2, 3) or dtype is torch.float64:
        return vector_norm(x, order, dim, keepdim, dtype)
    wide = None if dtype is None else dtype_of(dtype)
    return prim.linalg_vector_norm_op(x, float(order), _axes(x, dim), keepdim, wide)


def csrc_vector_norm(
    x: Tensor, order: float, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None
) -> Any:
    if order != 2 or dim or keepdim or dtype not in (None, x.dtype):
        return NotImplemented
    return aten._foreach_norm([x])[0]


row(
    "aten::linalg_vector_norm",
    lambda s: torch.linalg.vector_norm(s.x),
    cpu=Kernel(vector_norm, FLOATS),
    ascend=Kernel(ascend_vector_norm, ASCEND_FLOATS),
    csrc=Kernel(csrc_vector_norm, F32),
)

# ---- products, variances: on Ascend, in the dtypes of CANN's pages (ops-math: aclnnProd, aclnnVarCorrection)


def ascend_prod(x: ms.Tensor, dtype: torch.dtype | None) -> ms.Tensor:
    x = cast(x, dtype if dtype is not None else torch.int64 if is_integral(x) else None)
    return cast(mint.prod(x), dtype)  # of int32 it is int64


def ascend_prod_dim(x: ms.Tensor, dim: int, keepdim: bool, dtype: torch.dtype | None) -> Any:
    if not x.shape:
        return NotImplemented
    x = cast(x, dtype if dtype is not None else torch.int64 if is_integral(x) else None)
    return cast(mint.prod(x, dim, keepdim), dtype)


row("aten::prod", lambda s: s.p[0, :8].prod(), ascend=Kernel(ascend_prod, ASCEND_ALL))
row("aten::prod.dim_int", lambda s: s.p[:, :8].prod(-1), ascend=Kernel(ascend_prod_dim, ASCEND_ALL))


def _spread(name: str, primitive: Any) -> None:
    """Variance or standard deviation, alone or with the mean."""

    def ascend(x: ms.Tensor, dim: Sequence[int] | None, correction: float | None, keepdim: bool) -> Any:
        if correction not in (None, 0, 1):
            return NotImplemented  # MindSpore 2.10 makes 1 of any other
        return primitive(x, _axes(x, dim), int(correction != 0), keepdim)

    row(
        f"aten::{name}.correction",
        lambda s: getattr(torch, name)(s.x, -1),
        ascend=Kernel(ascend, ASCEND_FLOATS),
    )


_spread("var", prim.var_op)
_spread("std", prim.std_op)
_spread("var_mean", prim.var_mean_op)
_spread("std_mean", prim.std_mean_op)

# ---- extrema


def amax(x: ms.Tensor, dim: Sequence[int], keepdim: bool) -> ms.Tensor:
    return mint.amax(x, _axes(x, dim) or (), keepdim)


row(
    "aten::amax",
    lambda s: s.x.amax(-1),
    cpu=Kernel(amax, NUMBERS),
    ascend=Kernel(amax, ASCEND_ALL),
)


def amin(x: ms.Tensor, dim: Sequence[int], keepdim: bool) -> ms.Tensor:
    return mint.amin(x, _axes(x, dim) or (), keepdim)


row(
    "aten::amin",
    lambda s: s.x.amin(-1),
    cpu=Kernel(amin, NUMBERS),
    ascend=Kernel(amin, ASCEND_ALL),
)


def max_all(x: ms.Tensor) -> ms.Tensor:
    return mint.max(x)


row(
    "aten::max",
    lambda s: s.x.max(),
    cpu=Kernel(max_all, NUMBERS),
    ascend=Kernel(max_all, ASCEND_ALL),
)


def min_all(x: ms.Tensor) -> ms.Tensor:
    return mint.min(x)


row(
    "aten::min",
    lambda s: s.x.min(),
    cpu=Kernel(min_all, NUMBERS),
    ascend=Kernel(min_all, ASCEND_ALL),
)


def max_dim(x: ms.Tensor, dim: int, keepdim: bool) -> Any:
    return mint.max(x, dim, keepdim) if x.shape else NotImplemented


row(
    "aten::max.dim",
    lambda s: s.x.max(-1).values,
    cpu=Kernel(max_dim, FLOATS),
    ascend=Kernel(max_dim, ASCEND_ALL),
)


def min_dim(x: ms.Tensor, dim: int, keepdim: bool) -> Any:
    return mint.min(x, dim, keepdim) if x.shape else NotImplemented


row(
    "aten::min.dim",
    lambda s: s.x.min(-1).values,
    cpu=Kernel(min_dim, FLOATS),
    ascend=Kernel(min_dim, ASCEND_ALL),
)

# ---- all, any


def _truth(name: str, primitive: Any, on_ascend: Any) -> None:
    """Whether all, or any, are true: of everything, and along a dimension."""

    def everything(x: ms.Tensor) -> ms.Tensor:
        return _reduce(primitive, False)(x)

    def along(x: ms.Tensor, dim: int, keepdim: bool) -> Any:
        return _reduce(primitive, keepdim)(x, (dim,)) if x.shape else NotImplemented

    def ascend_along(x: ms.Tensor, dim: int, keepdim: bool) -> Any:
        return on_ascend(x, dim, keepdim) if x.shape else NotImplemented

    def ascend_along_some(x: ms.Tensor, dim: Sequence[int] | None, keepdim: bool) -> Any:
        return NotImplemented if dim == [] else _reduce(primitive, keepdim)(x, _axes(x, dim) or ())

    row(
        f"aten::{name}",
        lambda s: getattr(torch, name)(s.x),
        cpu=Kernel(everything, BOOL),
        ascend=Kernel(on_ascend, ASCEND_ALL),
    )
    row(
        f"aten::{name}.dim",
        lambda s: getattr(torch, name)(s.x, -1),
        cpu=Kernel(along, BOOL),
        ascend=Kernel(ascend_along, ASCEND_ALL),
    )
    row(
        f"aten::{name}.dims",
        lambda s: getattr(torch, name)(s.x, (0, 1)),
        ascend=Kernel(ascend_along_some, ASCEND_ALL),
    )


_truth("all", ag.ReduceAll, mint.all)
_truth("any", ag.ReduceAny, mint.any)

"""Sums, means, extrema, norms and scans."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from mindspeed_ms.ops.dtypes import cast, is_integral
from mindspeed_ms.ops.names import ag, mint, ms, ops
from mindspeed_ms.ops.registry import ALL, BOOL, FLOATS, INTS, lowering

NUMBERS = FLOATS + INTS

_cumsum = ag.CumSum()
_all, _any = ag.ReduceAll, ag.ReduceAny


def _axes(x: ms.Tensor, dim: Sequence[int] | None) -> tuple[int, ...] | None:
    """Dimensions to reduce; None for all of them."""
    return tuple(dim) if dim and len(x.shape) else None


@cache
def _reduce(primitive: Any, keepdim: bool) -> Any:
    return primitive(keepdim)


@lowering("aten::sum.dim_IntList", dtypes=ALL)
def sum_dim(x: ms.Tensor, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None) -> ms.Tensor:
    axes = _axes(x, dim)
    x = cast(x, dtype if dtype is not None else torch.int64 if is_integral(x) else None)
    if axes is None and not keepdim and len(x.shape) > 1:
        # In two steps: MindSpore's sum over everything is forty times slower than over one dimension.
        return ag.sum_ext(ag.sum_ext(x, (-1,), False, None), None, False, None)
    return ag.sum_ext(x, axes, keepdim, None)


@lowering("aten::sum", dtypes=ALL)
def sum_all(x: ms.Tensor, dtype: torch.dtype | None) -> ms.Tensor:
    return sum_dim(x, None, False, dtype)


@lowering("aten::mean.dim", dtypes=FLOATS)
def mean_dim(x: ms.Tensor, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None) -> Any:
    if dtype is not None and not dtype.is_floating_point:
        return NotImplemented
    return ag.mean_ext(cast(x, dtype), _axes(x, dim), keepdim, None)


@lowering("aten::mean", dtypes=FLOATS)
def mean_all(x: ms.Tensor, dtype: torch.dtype | None) -> Any:
    return mean_dim(x, None, False, dtype)


@lowering("aten::amax", dtypes=NUMBERS)
def amax(x: ms.Tensor, dim: Sequence[int], keepdim: bool) -> ms.Tensor:
    return mint.amax(x, _axes(x, dim) or (), keepdim)


@lowering("aten::amin", dtypes=NUMBERS)
def amin(x: ms.Tensor, dim: Sequence[int], keepdim: bool) -> ms.Tensor:
    return mint.amin(x, _axes(x, dim) or (), keepdim)


@lowering("aten::max", dtypes=NUMBERS)
def max_all(x: ms.Tensor) -> ms.Tensor:
    return mint.max(x)


@lowering("aten::min", dtypes=NUMBERS)
def min_all(x: ms.Tensor) -> ms.Tensor:
    return mint.min(x)


@lowering("aten::max.dim", dtypes=FLOATS)
def max_dim(x: ms.Tensor, dim: int, keepdim: bool) -> Any:
    return mint.max(x, dim, keepdim) if x.shape else NotImplemented


@lowering("aten::min.dim", dtypes=FLOATS)
def min_dim(x: ms.Tensor, dim: int, keepdim: bool) -> Any:
    return mint.min(x, dim, keepdim) if x.shape else NotImplemented


@lowering("aten::argmax", dtypes=FLOATS)
def argmax(x: ms.Tensor, dim: int | None, keepdim: bool) -> Any:
    if not x.shape or (dim is None and keepdim):
        return NotImplemented
    if dim is None:
        return ag.Argmax(0, ms.int64)(x.view(-1))
    index = ag.Argmax(dim, ms.int64)(x)
    return index.expand_dims(dim) if keepdim else index


@lowering("aten::all", dtypes=BOOL)
def all_(x: ms.Tensor) -> ms.Tensor:
    return _reduce(_all, False)(x)


@lowering("aten::any", dtypes=BOOL)
def any_(x: ms.Tensor) -> ms.Tensor:
    return _reduce(_any, False)(x)


@lowering("aten::all.dim", dtypes=BOOL)
def all_dim(x: ms.Tensor, dim: int, keepdim: bool) -> Any:
    return _reduce(_all, keepdim)(x, (dim,)) if x.shape else NotImplemented


@lowering("aten::any.dim", dtypes=BOOL)
def any_dim(x: ms.Tensor, dim: int, keepdim: bool) -> Any:
    return _reduce(_any, keepdim)(x, (dim,)) if x.shape else NotImplemented


@lowering("aten::cumsum", dtypes=NUMBERS)
def cumsum(x: ms.Tensor, dim: int, dtype: torch.dtype | None) -> Any:
    if not x.shape:
        return NotImplemented
    return _cumsum(cast(x, dtype if dtype is not None else torch.int64 if is_integral(x) else None), dim)


@lowering("aten::linalg_vector_norm", dtypes=FLOATS)
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


@lowering("aten::sort", dtypes=FLOATS)
def sort(x: ms.Tensor, dim: int, descending: bool) -> Any:
    if not x.shape:
        return NotImplemented
    values, indices = ops.sort(x, dim, descending)
    return values, cast(indices, torch.int64)


@lowering("aten::topk", dtypes=FLOATS)
def topk(x: ms.Tensor, k: int, dim: int, largest: bool, in_order: bool) -> Any:
    if not x.shape or k > x.shape[dim] or k < 1:
        return NotImplemented
    values, indices = ops.topk(x, k, dim, largest, True)
    return values, cast(indices, torch.int64)


@lowering("aten::bincount", dtypes=(torch.int64,))
def bincount(x: ms.Tensor, weights: ms.Tensor | None, minlength: int) -> Any:
    if weights is not None or len(x.shape) != 1:
        return NotImplemented
    return cast(ops.bincount(x, minlength=minlength), torch.int64)

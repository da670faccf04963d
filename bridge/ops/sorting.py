"""Sorting, selection of the largest, counting."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.ops.dtypes import cast
from mindspeed_ms.ops.names import ag, mint, ms, ops
from mindspeed_ms.ops.registry import ASCEND_NUMBERS, FLOATS, Kernel, row

# ---- argmax, argmin


def argmax(x: ms.Tensor, dim: int | None, keepdim: bool) -> Any:
    if not x.shape or (dim is None and keepdim):
        return NotImplemented
    if dim is None:
        return ag.Argmax(0, ms.int64)(x.view(-1))
    index = ag.Argmax(dim, ms.int64)(x)
    return index.expand_dims(dim) if keepdim else index


def _arg(on_ascend: Any) -> Kernel:
    def found(x: ms.Tensor, dim: int | None, keepdim: bool) -> Any:
        if not x.shape or (dim is None and keepdim):
            return NotImplemented
        return on_ascend(x) if dim is None else on_ascend(x, dim, keepdim)

    return Kernel(found, ASCEND_NUMBERS)


row("aten::argmax", lambda s: s.x.argmax(-1), cpu=Kernel(argmax, FLOATS), ascend=_arg(mint.argmax))
row("aten::argmin", lambda s: s.x.argmin(-1), ascend=_arg(mint.argmin))

# ---- sort, topk


def sort(x: ms.Tensor, dim: int, descending: bool) -> Any:
    if not x.shape:
        return NotImplemented
    values, indices = ops.sort(x, dim, descending)
    return values, cast(indices, torch.int64)


def ascend_sort(x: ms.Tensor, dim: int, descending: bool) -> Any:
    return tuple(mint.sort(x, dim=dim, descending=descending)) if x.shape else NotImplemented


row(
    "aten::sort",
    lambda s: s.x.sort(-1).values,
    cpu=Kernel(sort, FLOATS),
    ascend=Kernel(ascend_sort, ASCEND_NUMBERS),
)


def ascend_sort_stable(x: ms.Tensor, stable: bool | None, dim: int, descending: bool) -> Any:
    found = mint.sort(x, dim=dim, descending=descending, stable=bool(stable)) if x.shape else None
    return NotImplemented if found is None else tuple(found)


row(
    "aten::sort.stable",
    lambda s: s.x.sort(dim=-1, stable=True),
    ascend=Kernel(ascend_sort_stable, ASCEND_NUMBERS),
)


def topk(x: ms.Tensor, k: int, dim: int, largest: bool, in_order: bool) -> Any:
    if not x.shape or k > x.shape[dim] or k < 1:
        return NotImplemented
    values, indices = ops.topk(x, k, dim, largest, True)
    return values, cast(indices, torch.int64)


def ascend_topk(x: ms.Tensor, k: int, dim: int, largest: bool, in_order: bool) -> Any:
    if not x.shape or k > x.shape[dim] or k < 1:
        return NotImplemented
    return tuple(mint.topk(x, k, dim, largest, in_order))


row(
    "aten::topk",
    lambda s: s.x.topk(3).values,
    cpu=Kernel(topk, FLOATS),
    ascend=Kernel(ascend_topk, ASCEND_NUMBERS),
)

# ---- counts


def bincount(x: ms.Tensor, weights: ms.Tensor | None, minlength: int) -> Any:
    if weights is not None or len(x.shape) != 1:
        return NotImplemented
    return cast(ops.bincount(x, minlength=minlength), torch.int64)


def ascend_bincount(x: ms.Tensor, weights: ms.Tensor | None, minlength: int) -> Any:
    return mint.bincount(x, None, minlength) if weights is None and len(x.shape) == 1 else NotImplemented


row(
    "aten::bincount",
    lambda s: torch.bincount(s.i.flatten(), minlength=4),
    cpu=Kernel(bincount, (torch.int64,)),
    ascend=Kernel(ascend_bincount, (torch.int64,)),
)

"""Selection by masks."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from mindspeed_ms.ops.ascend_numbers import filled, tensors
from mindspeed_ms.ops.dtypes import cast, torch_dtype
from mindspeed_ms.ops.names import ag, mint, ms, ops
from mindspeed_ms.ops.registry import ALL, ASCEND_ALL, NUMBERS, Kernel, row

_gather, _any, _select = ag.Gather(), ag.ReduceAny(), ag.Select()


def where(condition: ms.Tensor, x: Any, y: Any) -> Any:
    if condition.dtype != ms.bool_:
        return NotImplemented
    return _select(condition, x, y)


def ascend_where(condition: ms.Tensor, x: Any, y: Any) -> Any:
    return mint.where(condition, *tensors(x, y)) if condition.dtype == ms.bool_ else NotImplemented


row(
    "aten::where.self",
    lambda s: torch.where(s.mask, s.x, s.y),
    cpu=Kernel(where, ALL),
    ascend=Kernel(ascend_where, ASCEND_ALL),
    key_arg=1,
    promotes=True,
)


def masked_fill(x: ms.Tensor, mask: ms.Tensor, value: Any) -> Any:
    if mask.dtype != ms.bool_:
        return NotImplemented
    return _select(mask, cast_number(value, x), x)


def cast_number(value: Any, like: ms.Tensor) -> Any:
    """A number, or 0-dim tensor, for use beside `like` without changing its dtype."""
    if isinstance(value, ms.Tensor):
        return ag.Cast()(value, like.dtype)
    return ms.Tensor(value, like.dtype)


def ascend_masked_fill(x: ms.Tensor, mask: ms.Tensor, value: Any) -> Any:
    if mask.dtype != ms.bool_:
        return NotImplemented
    if isinstance(value, ms.Tensor):
        return ag.masked_fill(x, mask, cast(value, torch_dtype(x)))
    return ag.masked_fill(x, mask, filled(value, x))


_cpu, _ascend = Kernel(masked_fill, ALL), Kernel(ascend_masked_fill, ASCEND_ALL)
row(
    "aten::masked_fill.Scalar",
    lambda s: s.x.masked_fill(s.mask, 0),
    cpu=_cpu,
    ascend=_ascend,
    mixed=True,
)
row(
    "aten::masked_fill.Tensor",
    lambda s: s.x.masked_fill(s.mask, s.y[0, 0]),
    cpu=_cpu,
    ascend=_ascend,
    mixed=True,
)


def _selected(mask: ms.Tensor) -> ms.Tensor | None:
    """int64 positions of what `mask` shows, in its flattened order; None where it shows nothing."""
    positions = mint.nonzero(mask.view(-1)).view(-1) if bool(_any(mask)) else None
    return None if positions is None else cast(positions, torch.int64)


def masked_select(x: ms.Tensor, mask: ms.Tensor) -> Any:
    if mask.dtype != ms.bool_ or mask.shape != x.shape or not x.shape:
        return NotImplemented
    positions = _selected(mask)
    return NotImplemented if positions is None else _gather(x.view(-1), positions, 0)


def ascend_masked_select(x: ms.Tensor, mask: ms.Tensor) -> Any:
    return mint.masked_select(x, mask) if mask.dtype == ms.bool_ and x.shape == mask.shape else NotImplemented


row(
    "aten::masked_select",
    lambda s: s.x.masked_select(s.mask),
    cpu=Kernel(masked_select, NUMBERS),
    ascend=Kernel(ascend_masked_select, ASCEND_ALL),
    mixed=True,
)


def masked_scatter(x: ms.Tensor, mask: ms.Tensor, source: ms.Tensor) -> Any:
    if mask.dtype != ms.bool_ or mask.shape != x.shape or source.dtype != x.dtype or not x.shape:
        return NotImplemented
    positions = _selected(mask)
    if positions is None:
        return x
    count = positions.shape[0]
    if prod(source.shape) < count:
        return NotImplemented  # torch's own error
    updates = source.view(-1)[:count]
    return ops.TensorScatterUpdate()(x.view(-1), positions.view(-1, 1), updates).view(x.shape)


def ascend_masked_scatter(x: ms.Tensor, mask: ms.Tensor, source: ms.Tensor) -> Any:
    """The device counts what `mask` shows: that `source` is too short is its error, as on CUDA."""
    if mask.dtype != ms.bool_ or source.dtype != x.dtype or not source.size:
        return NotImplemented
    return ag.masked_scatter(x, mask, source)


row(
    "aten::masked_scatter",
    lambda s: s.x.masked_scatter(s.mask, s.y),
    cpu=Kernel(masked_scatter, NUMBERS),
    ascend=Kernel(ascend_masked_scatter, ASCEND_ALL),
    mixed=True,
)


def nonzero(x: ms.Tensor) -> Any:
    return cast(mint.nonzero(x), torch.int64) if x.shape else NotImplemented


row("aten::nonzero", lambda s: s.x.nonzero(), cpu=Kernel(nonzero, ALL))

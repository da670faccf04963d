"""Gathers, scatters, concatenation and triangles.

MindSpore's gathers read an index that is out of range as zero or crash, torch raises: indices are checked
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import Any

import torch
from mindspeed_ms.ops.dtypes import cast, torch_dtype
from mindspeed_ms.ops.names import ag, mint, ms, ops
from mindspeed_ms.ops.registry import ALL, FLOATS, INTS, lowering

NUMBERS = FLOATS + INTS

_gather, _any = ag.Gather(), ag.ReduceAny()


def _index_dtypes() -> tuple[Any, Any]:
    return ms.int64, ms.int32


def _inside(index: ms.Tensor, size: int) -> bool:
    return int(index.min()) >= 0 and int(index.max()) < size


@lowering("aten::index_select", dtypes=NUMBERS, mixed=True)
def index_select(x: ms.Tensor, dim: int, index: ms.Tensor) -> Any:
    if not x.shape or len(index.shape) != 1 or not _inside(index, x.shape[dim]):
        return NotImplemented
    return _gather(x, index, dim)


@lowering("aten::index.Tensor", dtypes=NUMBERS, mixed=True)
def index_tensor(x: ms.Tensor, indices: Sequence[ms.Tensor | None]) -> Any:
    """One index, or index tensors of one shape for all leading dimensions; other forms run on the host."""
    given = [index for index in indices if index is not None]
    if any(not isinstance(index, ms.Tensor) or index.dtype not in _index_dtypes() for index in given):
        return NotImplemented
    if len(given) == 1:
        dim = next(i for i, index in enumerate(indices) if index is not None)
        index, size = given[0], x.shape[dim]
        index = _wrapped(index, size)
        return NotImplemented if index is None else _gather(x, index, dim)
    if len(given) != len(indices) or any(index.shape != given[0].shape for index in given):
        return NotImplemented
    flat = _flat(given, x.shape)
    if flat is None:
        return NotImplemented
    tail = x.shape[len(given) :]
    return _gather(x.view(-1, *tail), flat, 0)


def _wrapped(index: ms.Tensor, size: int) -> ms.Tensor | None:
    """`index` with negative values counted from the end; None if any is out of range."""
    low, high = int(index.min()), int(index.max())
    if low < -size or high >= size:
        return None
    return index if low >= 0 else ag.Select()(ag.less(index, 0), ag.add(index, size), index)


def _flat(indices: Sequence[ms.Tensor], shape: Sequence[int]) -> ms.Tensor | None:
    """Position in the flattened leading dimensions of `shape`; None if an index is out of range."""
    position = None
    for index, size in zip(indices, shape, strict=False):
        index = _wrapped(index, size)
        if index is None:
            return None
        position = index if position is None else ag.add(ag.mul(position, size), index)
    return position


@lowering("aten::_index_put_impl", dtypes=NUMBERS, mixed=True)
def index_put(
    x: ms.Tensor,
    indices: Sequence[ms.Tensor | None],
    values: Any,
    accumulate: bool,
    unsafe: bool,
) -> Any:
    """Index tensors of one shape for the leading dimensions, or one bool mask of x's shape with one value."""
    given = [index for index in indices if isinstance(index, ms.Tensor)]
    if len(given) != len(indices):
        return NotImplemented
    if len(given) == 1 and given[0].dtype == ms.bool_ and given[0].shape == x.shape and not accumulate:
        if isinstance(values, ms.Tensor) and values.shape:
            return NotImplemented
        value = ms.Tensor(values, x.dtype) if not isinstance(values, ms.Tensor) else values
        return ag.Select()(given[0], value, x) if value.dtype == x.dtype else NotImplemented
    if any(i.dtype not in _index_dtypes() or i.shape != given[0].shape for i in given):
        return NotImplemented
    if not isinstance(values, ms.Tensor):
        values = ms.Tensor(values, x.dtype)
    if values.dtype != x.dtype:
        return NotImplemented
    flat = _flat(given, x.shape)
    if flat is None:
        return NotImplemented
    tail = x.shape[len(given) :]
    updates = ops.broadcast_to(values, (*flat.shape, *tail)).view(-1, *tail)
    scatter = ops.TensorScatterAdd() if accumulate else ops.TensorScatterUpdate()
    return scatter(x.view(-1, *tail), flat.view(-1, 1), updates).view(x.shape)


@lowering("aten::gather", dtypes=NUMBERS, mixed=True)
def gather(x: ms.Tensor, dim: int, index: ms.Tensor, sparse_grad: bool) -> Any:
    dims = len(x.shape)
    if not dims or len(index.shape) != dims or not _inside(index, x.shape[dim]):
        return NotImplemented
    if any(index.shape[i] > x.shape[i] for i in range(dims) if i != dim % dims):
        return NotImplemented
    return mint.gather(x, dim, index)


@lowering("aten::scatter.src", dtypes=NUMBERS, mixed=True)
def scatter_src(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor) -> Any:
    if not x.shape or index.shape != source.shape or not _inside(index, x.shape[dim]):
        return NotImplemented
    return mint.scatter(x, dim, index, source)


@lowering("aten::scatter.value", dtypes=NUMBERS, mixed=True)
def scatter_value(x: ms.Tensor, dim: int, index: ms.Tensor, value: float) -> Any:
    if not x.shape or not _inside(index, x.shape[dim]):
        return NotImplemented
    return mint.scatter(x, dim, index, ops.full(index.shape, value, dtype=x.dtype))


@lowering("aten::scatter_add", dtypes=NUMBERS, mixed=True)
def scatter_add(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor) -> Any:
    if not x.shape or index.shape != source.shape or not _inside(index, x.shape[dim]):
        return NotImplemented
    return ops.tensor_scatter_elements(x, index, source, dim, "add")


@lowering("aten::cat", dtypes=(*ALL, torch.bfloat16), mixed=True)
def cat(tensors: Sequence[ms.Tensor], dim: int) -> Any:
    common = reduce(torch.promote_types, map(torch_dtype, tensors))
    tensors = [cast(t, common) for t in tensors]
    first = tensors[0].shape
    if not first:
        return NotImplemented
    if len(tensors) == 1:
        return tensors[0]  # the C++ kernel copies what shares memory with an input
    dim %= len(first)
    for t in tensors[1:]:
        if len(t.shape) != len(first) or any(t.shape[i] != first[i] for i in range(len(first)) if i != dim):
            return NotImplemented  # torch's own error
    return mint.cat(tuple(tensors), dim)


@lowering("aten::tril", dtypes=NUMBERS)
def tril(x: ms.Tensor, diagonal: int) -> Any:
    return ops.tril(x, diagonal) if len(x.shape) >= 2 else NotImplemented


@lowering("aten::triu", dtypes=NUMBERS)
def triu(x: ms.Tensor, diagonal: int) -> Any:
    return mint.triu(x, diagonal) if len(x.shape) >= 2 else NotImplemented


@lowering("aten::nonzero", dtypes=ALL)
def nonzero(x: ms.Tensor) -> Any:
    return cast(mint.nonzero(x), torch.int64) if x.shape else NotImplemented


def _selected(mask: ms.Tensor) -> ms.Tensor | None:
    """int64 positions of what `mask` shows, in its flattened order; None where it shows nothing."""
    positions = mint.nonzero(mask.view(-1)).view(-1) if bool(_any(mask)) else None
    return None if positions is None else cast(positions, torch.int64)


@lowering("aten::masked_select", dtypes=NUMBERS, mixed=True)
def masked_select(x: ms.Tensor, mask: ms.Tensor) -> Any:
    if mask.dtype != ms.bool_ or mask.shape != x.shape or not x.shape:
        return NotImplemented
    positions = _selected(mask)
    return NotImplemented if positions is None else _gather(x.view(-1), positions, 0)


@lowering("aten::masked_scatter", dtypes=NUMBERS, mixed=True)
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


@lowering("aten::index_add", dtypes=NUMBERS, mixed=True)
def index_add(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor, alpha: float) -> Any:
    """Over the first dimension, as MoE layers add up what experts return; others run on the host."""
    if len(x.shape) < 2 or dim % len(x.shape) or len(index.shape) != 1 or source.dtype != x.dtype:
        return NotImplemented
    if source.shape != (index.shape[0], *x.shape[1:]) or not _inside(index, x.shape[0]):
        return NotImplemented
    source = source if alpha == 1 else ag.mul(source, alpha)
    return ops.TensorScatterAdd()(x, index.view(-1, 1), source)

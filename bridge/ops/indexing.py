"""Gathers and scatters by index.

MindSpore's gathers on the CPU read an index that is out of range as zero or crash, torch raises: indices are
checked first. On Ascend the host would have to wait for them: as on CUDA, the device checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mindspeed_ms.kernels import aten_nn
from mindspeed_ms.ops.ascend_numbers import filled
from mindspeed_ms.ops.names import ag, mint, ms, ops, prim
from mindspeed_ms.ops.registry import (
    ASCEND_ALL,
    ASCEND_FLOATS,
    ASCEND_NUMBERS,
    FLOATS,
    NATIVE,
    NUMBERS,
    Kernel,
    row,
)

_gather, _segment_sum = ag.Gather(), ag.UnsortedSegmentSum()


def _index_dtypes() -> tuple[Any, Any]:
    return ms.int64, ms.int32


def _inside(index: ms.Tensor, size: int) -> bool:
    return int(index.min()) >= 0 and int(index.max()) < size


# ---- gathers


def index_select(x: ms.Tensor, dim: int, index: ms.Tensor) -> Any:
    if not x.shape or len(index.shape) != 1 or not _inside(index, x.shape[dim]):
        return NotImplemented
    return _gather(x, index, dim)


def ascend_index_select(x: ms.Tensor, dim: int, index: ms.Tensor) -> Any:
    return mint.index_select(x, dim, index) if x.shape and len(index.shape) == 1 else NotImplemented


row(
    "aten::index_select",
    lambda s: s.x.index_select(0, s.i[:, 0]),
    cpu=Kernel(index_select, NUMBERS),
    ascend=Kernel(ascend_index_select, ASCEND_ALL),
    mixed=True,
)


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


def _places(mask: ms.Tensor) -> list[ms.Tensor]:
    """What `mask` shows, as an index for each of its dimensions. Its number is read, as on CUDA."""
    found = mint.nonzero(mask)
    return [mint.select(found, 1, dim) for dim in range(len(mask.shape))] if found.shape[0] else []


def ascend_index_tensor(x: ms.Tensor, indices: Sequence[ms.Tensor | None]) -> Any:
    """Any number of indices, or a bool mask, for the leading dimensions, or one index for another."""
    given = [index for index in indices if index is not None]
    if len(indices) == 1 and given[0].dtype == ms.bool_ and given[0].shape == x.shape[: len(given[0].shape)]:
        places = _places(given[0])
        return ag.index(x, tuple(places)) if places else NotImplemented
    if any(index.dtype not in (ms.int64, ms.int32) for index in given):
        return NotImplemented
    if len(given) == len(indices):
        return ag.index(x, tuple(given))
    if len(given) > 1:
        return NotImplemented
    dim = next(i for i, index in enumerate(indices) if index is not None)
    index, size = given[0], x.shape[dim]
    rows = mint.where(mint.lt(index, 0), mint.add(index, size), index).reshape((-1,))
    return mint.index_select(x, dim, rows).reshape((*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]))


row(
    "aten::index.Tensor",
    lambda s: s.x[s.i[:, 0], s.i[:, 1]],
    cpu=Kernel(index_tensor, NUMBERS),
    ascend=Kernel(ascend_index_tensor, ASCEND_ALL),
    mixed=True,
)


def gather(x: ms.Tensor, dim: int, index: ms.Tensor, sparse_grad: bool) -> Any:
    dims = len(x.shape)
    if not dims or len(index.shape) != dims or not _inside(index, x.shape[dim]):
        return NotImplemented
    if any(index.shape[i] > x.shape[i] for i in range(dims) if i != dim % dims):
        return NotImplemented
    return mint.gather(x, dim, index)


def ascend_gather(x: ms.Tensor, dim: int, index: ms.Tensor, sparse_grad: bool) -> Any:
    return mint.gather(x, dim, index) if x.shape else NotImplemented


row(
    "aten::gather",
    lambda s: s.x.gather(0, s.i),
    cpu=Kernel(gather, NUMBERS),
    ascend=Kernel(ascend_gather, ASCEND_ALL),
    mixed=True,
)


def embedding(
    weight: ms.Tensor, indices: ms.Tensor, padding_idx: int, scale_by_freq: bool, sparse: bool
) -> Any:
    # MindSpore reads rows that do not exist as zeros; torch raises.
    if len(weight.shape) != 2 or int(indices.min()) < 0 or int(indices.max()) >= weight.shape[0]:
        return NotImplemented
    return _gather(weight, indices, 0)


def ascend_embedding(
    weight: ms.Tensor, indices: ms.Tensor, padding_idx: int, scale_by_freq: bool, sparse: bool
) -> Any:
    if len(weight.shape) != 2:
        return NotImplemented
    rows = mint.index_select(weight, 0, indices.reshape((-1,)))
    return rows.reshape((*indices.shape, weight.shape[1]))


row(
    "aten::embedding",
    lambda s: F.embedding(s.i[:, 0], s.x),
    cpu=Kernel(embedding, FLOATS),
    ascend=Kernel(ascend_embedding, ASCEND_ALL),
    mixed=True,
)


def embedding_dense_backward(
    grad: ms.Tensor, indices: ms.Tensor, num_weights: int, padding_idx: int, scale_by_freq: bool
) -> Any:
    if scale_by_freq or padding_idx >= 0:
        return NotImplemented
    return _segment_sum(grad.view(-1, grad.shape[-1]), indices.view(-1), num_weights)


def ascend_embedding_dense_backward(
    grad: ms.Tensor, indices: ms.Tensor, num_weights: int, padding_idx: int, scale_by_freq: bool
) -> Any:
    skipped = None if padding_idx < 0 else padding_idx  # -1 would be the last row
    return prim.embedding_dense_backward_op(grad, indices, num_weights, skipped, scale_by_freq)


row(
    "aten::embedding_dense_backward",
    lambda s: torch.ops.aten.embedding_dense_backward(
        s.x, s.i[:, 0].contiguous(), 4 * s.x.shape[0], -1, False
    ),
    cpu=Kernel(embedding_dense_backward, FLOATS),
    ascend=Kernel(ascend_embedding_dense_backward, ASCEND_FLOATS),
    csrc=Kernel(aten_nn.embedding_dense_backward, NATIVE),
    mixed=True,
    sums=True,
)

# ---- scatters


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


def ascend_index_put(
    x: ms.Tensor, indices: Sequence[ms.Tensor | None], values: Any, accumulate: bool, unsafe: bool
) -> Any:
    """A bool mask of the leading dimensions, or indices for the leading dimensions."""
    given = [index for index in indices if index is not None]
    if len(given) != len(indices):
        return NotImplemented
    if not isinstance(values, ms.Tensor):
        values = filled(values, x)
    if values.dtype != x.dtype:
        return NotImplemented
    if len(given) == 1 and given[0].dtype == ms.bool_:
        mask = given[0]
        if not mask.shape or mask.shape != x.shape[: len(mask.shape)]:
            return NotImplemented
        if accumulate or values.size != 1:
            given = _places(mask)
            return _put(x, given, values, accumulate) if given else NotImplemented
        mask = mask.reshape((*mask.shape, *(1 for _ in x.shape[len(mask.shape) :])))
        return ag.masked_fill(x, mask, values.reshape(()))
    if any(index.dtype not in (ms.int64, ms.int32) for index in given):
        return NotImplemented
    return _put(x, given, values, accumulate)


def _put(x: ms.Tensor, indices: list[ms.Tensor], values: ms.Tensor, accumulate: bool) -> ms.Tensor:
    found = mint.clone(x)
    ag.index_put_(found, tuple(indices), values, accumulate)
    return found


row(
    "aten::_index_put_impl",
    lambda s: s.x.index_put((s.i[:, 0],), s.y, accumulate=True),
    cpu=Kernel(index_put, NUMBERS),
    ascend=Kernel(ascend_index_put, ASCEND_ALL),
    mixed=True,
)


def scatter_src(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor) -> Any:
    if not x.shape or index.shape != source.shape or not _inside(index, x.shape[dim]):
        return NotImplemented
    # After other calls mint.scatter goes by the shape of an earlier index (int64, MindSpore 2.10.0).
    return ops.tensor_scatter_elements(x, index, source, dim)


def ascend_scatter_src(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor) -> Any:
    return mint.scatter(x, dim, index, source) if x.shape and source.dtype == x.dtype else NotImplemented


row(
    "aten::scatter.src",
    lambda s: s.x.scatter(0, s.i[:1], s.y[:1]),
    cpu=Kernel(scatter_src, NUMBERS),
    ascend=Kernel(ascend_scatter_src, ASCEND_ALL),
    mixed=True,
)


def scatter_value(x: ms.Tensor, dim: int, index: ms.Tensor, value: float) -> Any:
    if not x.shape or not _inside(index, x.shape[dim]):
        return NotImplemented
    return ops.tensor_scatter_elements(x, index, ops.full(index.shape, value, dtype=x.dtype), dim)


def ascend_scatter_value(x: ms.Tensor, dim: int, index: ms.Tensor, value: float) -> Any:
    if not x.shape:
        return NotImplemented
    return mint.scatter(x, dim, index, value)


row(
    "aten::scatter.value",
    lambda s: s.x.scatter(0, s.i, 1),
    cpu=Kernel(scatter_value, NUMBERS),
    ascend=Kernel(ascend_scatter_value, ASCEND_ALL),
    mixed=True,
)


def scatter_add(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor) -> Any:
    if not x.shape or index.shape != source.shape or not _inside(index, x.shape[dim]):
        return NotImplemented
    return ops.tensor_scatter_elements(x, index, source, dim, "add")


def ascend_scatter_add(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor) -> Any:
    return mint.scatter_add(x, dim, index, source) if x.shape else NotImplemented


row(
    "aten::scatter_add",
    lambda s: s.x.scatter_add(0, s.i, s.y),
    cpu=Kernel(scatter_add, NUMBERS),
    ascend=Kernel(ascend_scatter_add, ASCEND_NUMBERS),
    mixed=True,
)


def index_add(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor, alpha: float) -> Any:
    """Over the first dimension, as MoE layers add up what experts return; others run on the host."""
    if len(x.shape) < 2 or dim % len(x.shape) or len(index.shape) != 1 or source.dtype != x.dtype:
        return NotImplemented
    if source.shape != (index.shape[0], *x.shape[1:]) or not _inside(index, x.shape[0]):
        return NotImplemented
    source = source if alpha == 1 else ag.mul(source, alpha)
    return ops.TensorScatterAdd()(x, index.view(-1, 1), source)


def ascend_index_add(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor, alpha: float) -> Any:
    return mint.index_add(x, dim, index, source, alpha=alpha) if x.shape else NotImplemented


row(
    "aten::index_add",
    lambda s: s.x.index_add(0, s.i[:, 0], s.y),
    cpu=Kernel(index_add, NUMBERS),
    ascend=Kernel(ascend_index_add, ASCEND_NUMBERS),
    mixed=True,
)

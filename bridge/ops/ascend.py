"""Kernels of target Ascend where they are others than those of MindSpore's CPU backend.

There MindSpore has one operator of CANN (aclnn) for most of aten's; the CPU backend's older primitives
(Gather, ZerosLike, CumSum, ...) a chip would compile when they are first called. Operators of CANN round once
where a composite of elementary ones rounds at each step. Indices are not checked by the host, which would
have to wait for the device: as on CUDA, the device does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mindspeed_ms.ops.ascend_numbers import filled
from mindspeed_ms.ops.dtypes import cast, is_integral, torch_dtype
from mindspeed_ms.ops.names import ag, mint, ms, prim
from mindspeed_ms.ops.registry import ASCEND_FLOATS, BOOL, INTS, on_ascend

NUMBERS = (*ASCEND_FLOATS, *INTS)
ALL = (*NUMBERS, *BOOL)
_REDUCTIONS = ("none", "mean", "sum")

# ---- elementwise


@on_ascend("aten::isnan")
def isnan(x: ms.Tensor) -> ms.Tensor:
    return mint.not_equal(x, x)


@on_ascend("aten::sigmoid_backward")
def sigmoid_backward(grad: ms.Tensor, output: ms.Tensor) -> ms.Tensor:
    return prim.sigmoid_grad_op(output, grad)


@on_ascend("aten::tanh_backward")
def tanh_backward(grad: ms.Tensor, output: ms.Tensor) -> ms.Tensor:
    return prim.tanh_grad_op(output, grad)


@on_ascend("aten::silu_backward")
def silu_backward(grad: ms.Tensor, x: ms.Tensor) -> ms.Tensor:
    return prim.silu_grad_op(grad, x)


@on_ascend("aten::threshold_backward")
def threshold_backward(grad: ms.Tensor, x: ms.Tensor, threshold: float) -> ms.Tensor:
    return prim.threshold_grad_op(grad, x, threshold)


@on_ascend("aten::gelu")
def gelu(x: ms.Tensor, approximate: str) -> ms.Tensor:
    return prim.gelu_ext_op(x, approximate)


@on_ascend("aten::gelu_backward")
def gelu_backward(grad: ms.Tensor, x: ms.Tensor, approximate: str) -> ms.Tensor:
    return prim.gelu_grad_ext_op(grad, x, approximate)


@on_ascend("aten::zero", dtypes=ALL)
def zero(x: ms.Tensor) -> ms.Tensor:
    return mint.zeros_like(x)


@on_ascend("aten::fill.Scalar", dtypes=ALL)
def fill(x: ms.Tensor, value: float) -> ms.Tensor:
    return mint.full_like(x, value)


# ---- reductions, sorting


@on_ascend("aten::cumsum", dtypes=NUMBERS)
def cumsum(x: ms.Tensor, dim: int, dtype: torch.dtype | None) -> Any:
    if not x.shape:
        return NotImplemented
    return mint.cumsum(cast(x, dtype if dtype is not None else torch.int64 if is_integral(x) else None), dim)


@on_ascend("aten::argmax", dtypes=NUMBERS)
def argmax(x: ms.Tensor, dim: int | None, keepdim: bool) -> Any:
    if not x.shape or (dim is None and keepdim):
        return NotImplemented
    return mint.argmax(x) if dim is None else mint.argmax(x, dim, keepdim)


@on_ascend("aten::sort", dtypes=NUMBERS)
def sort(x: ms.Tensor, dim: int, descending: bool) -> Any:
    return tuple(mint.sort(x, dim=dim, descending=descending)) if x.shape else NotImplemented


@on_ascend("aten::sort.stable", dtypes=NUMBERS)
def sort_stable(x: ms.Tensor, stable: bool | None, dim: int, descending: bool) -> Any:
    found = mint.sort(x, dim=dim, descending=descending, stable=bool(stable)) if x.shape else None
    return NotImplemented if found is None else tuple(found)


@on_ascend("aten::topk", dtypes=NUMBERS)
def topk(x: ms.Tensor, k: int, dim: int, largest: bool, in_order: bool) -> Any:
    if not x.shape or k > x.shape[dim] or k < 1:
        return NotImplemented
    return tuple(mint.topk(x, k, dim, largest, in_order))


# ---- softmax, normalization, embedding, loss


@on_ascend("aten::_softmax_backward_data")
def softmax_backward(grad: ms.Tensor, output: ms.Tensor, dim: int, input_dtype: torch.dtype) -> Any:
    if torch_dtype(grad) is not input_dtype or not grad.shape:
        return NotImplemented
    return prim.softmax_backward_op(grad, output, dim)


@on_ascend("aten::embedding", dtypes=ALL)
def embedding(
    weight: ms.Tensor, indices: ms.Tensor, padding_idx: int, scale_by_freq: bool, sparse: bool
) -> Any:
    if len(weight.shape) != 2:
        return NotImplemented
    rows = mint.index_select(weight, 0, indices.reshape((-1,)))
    return rows.reshape((*indices.shape, weight.shape[1]))


@on_ascend("aten::embedding_dense_backward")
def embedding_dense_backward(
    grad: ms.Tensor, indices: ms.Tensor, num_weights: int, padding_idx: int, scale_by_freq: bool
) -> Any:
    skipped = None if padding_idx < 0 else padding_idx  # -1 would be the last row
    return prim.embedding_dense_backward_op(grad, indices, num_weights, skipped, scale_by_freq)


@on_ascend("aten::mse_loss")
def mse_loss(x: ms.Tensor, target: ms.Tensor, reduction: int) -> Any:
    return ag.mse_loss_ext(x, target, _REDUCTIONS[reduction])


# ---- indexing


@on_ascend("aten::index_select", dtypes=ALL)
def index_select(x: ms.Tensor, dim: int, index: ms.Tensor) -> Any:
    return mint.index_select(x, dim, index) if x.shape and len(index.shape) == 1 else NotImplemented


@on_ascend("aten::index.Tensor", dtypes=ALL)
def index_tensor(x: ms.Tensor, indices: Sequence[ms.Tensor | None]) -> Any:
    """Any number of indices for the leading dimensions, or one for another; other forms run on the host."""
    given = [index for index in indices if index is not None]
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


@on_ascend("aten::_index_put_impl", dtypes=ALL)
def index_put(
    x: ms.Tensor, indices: Sequence[ms.Tensor | None], values: Any, accumulate: bool, unsafe: bool
) -> Any:
    """A bool mask of the leading dimensions with one value, or indices for the leading dimensions."""
    given = [index for index in indices if index is not None]
    if len(given) != len(indices):
        return NotImplemented
    if not isinstance(values, ms.Tensor):
        values = filled(values, x)
    if values.dtype != x.dtype:
        return NotImplemented
    if len(given) == 1 and given[0].dtype == ms.bool_:
        mask = given[0]
        if accumulate or values.size != 1 or mask.shape != x.shape[: len(mask.shape)]:
            return NotImplemented
        mask = mask.reshape((*mask.shape, *(1 for _ in x.shape[len(mask.shape) :])))
        return ag.masked_fill(x, mask, values.reshape(()))
    if any(index.dtype not in (ms.int64, ms.int32) for index in given):
        return NotImplemented
    found = mint.clone(x)
    ag.index_put_(found, tuple(given), values, accumulate)
    return found


@on_ascend("aten::gather", dtypes=ALL)
def gather(x: ms.Tensor, dim: int, index: ms.Tensor, sparse_grad: bool) -> Any:
    return mint.gather(x, dim, index) if x.shape else NotImplemented


@on_ascend("aten::scatter.src", dtypes=NUMBERS)
def scatter_src(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor) -> Any:
    return mint.scatter(x, dim, index, source) if x.shape and source.dtype == x.dtype else NotImplemented


@on_ascend("aten::scatter.value", dtypes=NUMBERS)
def scatter_value(x: ms.Tensor, dim: int, index: ms.Tensor, value: float) -> Any:
    if not x.shape:
        return NotImplemented
    return mint.scatter(x, dim, index, value)


@on_ascend("aten::scatter_add", dtypes=NUMBERS)
def scatter_add(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor) -> Any:
    return mint.scatter_add(x, dim, index, source) if x.shape else NotImplemented


@on_ascend("aten::index_add", dtypes=NUMBERS)
def index_add(x: ms.Tensor, dim: int, index: ms.Tensor, source: ms.Tensor, alpha: float) -> Any:
    return mint.index_add(x, dim, index, source, alpha=alpha) if x.shape else NotImplemented


@on_ascend("aten::tril", dtypes=ALL)
def tril(x: ms.Tensor, diagonal: int) -> Any:
    return mint.tril(x, diagonal) if len(x.shape) >= 2 else NotImplemented


@on_ascend("aten::masked_select", dtypes=ALL)
def masked_select(x: ms.Tensor, mask: ms.Tensor) -> Any:
    return mint.masked_select(x, mask) if mask.dtype == ms.bool_ and x.shape == mask.shape else NotImplemented


@on_ascend("aten::roll", dtypes=ALL)
def roll(x: ms.Tensor, shifts: Sequence[int], dims: Sequence[int]) -> Any:
    return mint.roll(x, tuple(shifts), tuple(dims) if dims else None) if x.shape else NotImplemented

"""Activations, softmax, normalization, embedding and loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import pi, prod, sqrt
from typing import Any

import torch
from mindspeed_ms.ops.dtypes import cast, torch_dtype
from mindspeed_ms.ops.names import ag, ms, ops
from mindspeed_ms.ops.registry import FLOATS, lowering

_softmax_of = cache(ag.Softmax)
_log_softmax_of = cache(ag.LogSoftmax)
_gather, _segment_sum = ag.Gather(), ag.UnsortedSegmentSum()
_gelu_tanh, _gelu_tanh_grad = ag.GeLU(), ag.GeLUGrad()


def _row_sum(x: ms.Tensor, dim: int) -> ms.Tensor:
    return ag.sum_ext(x, (dim,), True, None)


@lowering("aten::_softmax", dtypes=FLOATS)
def softmax(x: ms.Tensor, dim: int, half_to_float: bool) -> Any:
    return NotImplemented if half_to_float or not x.shape else _softmax_of(dim)(x)


@lowering("aten::_softmax_backward_data", dtypes=FLOATS)
def softmax_backward(grad: ms.Tensor, output: ms.Tensor, dim: int, input_dtype: torch.dtype) -> Any:
    if torch_dtype(grad) is not input_dtype or not grad.shape:
        return NotImplemented
    weighted = ag.mul(grad, output)
    return ag.sub(weighted, ag.mul(output, _row_sum(weighted, dim)))


@lowering("aten::_log_softmax", dtypes=(torch.float32, torch.float16))
def log_softmax(x: ms.Tensor, dim: int, half_to_float: bool) -> Any:
    return NotImplemented if half_to_float or not x.shape else _log_softmax_of(dim)(x)


@lowering("aten::_log_softmax_backward_data", dtypes=(torch.float32, torch.float16))
def log_softmax_backward(grad: ms.Tensor, output: ms.Tensor, dim: int, input_dtype: torch.dtype) -> Any:
    if torch_dtype(grad) is not input_dtype or not grad.shape:
        return NotImplemented
    return ag.sub(grad, ag.mul(ag.exp(output), _row_sum(grad, dim)))


@lowering("aten::gelu", dtypes=(torch.float32, torch.float64))
def gelu(x: ms.Tensor, approximate: str) -> ms.Tensor:
    if approximate == "tanh":
        return _gelu_tanh(x)
    return ag.mul(ag.mul(x, 0.5), ag.add(ag.erf(ag.mul(x, sqrt(0.5))), 1))


@lowering("aten::gelu_backward", dtypes=(torch.float32,))
def gelu_backward(grad: ms.Tensor, x: ms.Tensor, approximate: str) -> ms.Tensor:
    if approximate == "tanh":
        return _gelu_tanh_grad(grad, x, _gelu_tanh(x))
    # d/dx x*Phi(x) = Phi(x) + x*phi(x); there is no MindSpore kernel for it on CPU.
    cdf = ag.mul(ag.add(ag.erf(ag.mul(x, sqrt(0.5))), 1), 0.5)
    pdf = ag.mul(ag.exp(ag.mul(ag.square(x), -0.5)), 1 / sqrt(2 * pi))
    return ag.mul(grad, ag.add(cdf, ag.mul(x, pdf)))


def _normalized(x: ms.Tensor, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows and columns of a layer norm: (leading sizes, (rows, columns))."""
    leading = x.shape[: len(x.shape) - len(shape)]
    return leading, (prod(leading), prod(shape))


@lowering("aten::native_layer_norm", dtypes=(torch.float32, torch.float64))
def layer_norm(
    x: ms.Tensor, shape: Sequence[int], weight: ms.Tensor | None, bias: ms.Tensor | None, eps: float
) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
    # From elementary kernels: ops.LayerNorm takes twenty times torch's time and gives no reciprocal
    # deviation.
    leading, flat = _normalized(x, shape)
    rows = x.view(flat)
    mean = ag.mean_ext(rows, (1,), True, None)
    centred = ag.sub(rows, mean)
    rstd = ag.rsqrt(ag.add(ag.mean_ext(ag.square(centred), (1,), True, None), eps))
    y = ag.mul(centred, rstd)
    if weight is not None:
        y = ag.mul(y, weight.view(1, -1))
    if bias is not None:
        y = ag.add(y, bias.view(1, -1))
    statistics = (*leading, *(1 for _ in shape))
    return y.view(x.shape), mean.view(statistics), rstd.view(statistics)


@lowering("aten::native_layer_norm_backward", dtypes=(torch.float32, torch.float64))
def layer_norm_backward(
    grad: ms.Tensor,
    x: ms.Tensor,
    shape: Sequence[int],
    mean: ms.Tensor,
    rstd: ms.Tensor,
    weight: ms.Tensor | None,
    bias: ms.Tensor | None,
    mask: Sequence[bool],
) -> tuple[ms.Tensor | None, ms.Tensor | None, ms.Tensor | None]:
    _, flat = _normalized(x, shape)
    dy, rstd = grad.view(flat), rstd.view(-1, 1)
    normal = ag.mul(ag.sub(x.view(flat), mean.view(-1, 1)), rstd)
    dx = dweight = dbias = None
    if mask[0]:
        dn = dy if weight is None else ag.mul(dy, weight.view(1, -1))
        along = ag.mul(normal, ag.mean_ext(ag.mul(dn, normal), (1,), True, None))
        dx = ag.mul(ag.sub(ag.sub(dn, ag.mean_ext(dn, (1,), True, None)), along), rstd).view(x.shape)
    if mask[1] and weight is not None:
        dweight = ag.sum_ext(ag.mul(dy, normal), (0,), False, None).view(weight.shape)
    if mask[2] and bias is not None:
        dbias = ag.sum_ext(dy, (0,), False, None).view(bias.shape)
    return dx, dweight, dbias


@lowering("aten::embedding", dtypes=FLOATS, mixed=True)
def embedding(
    weight: ms.Tensor, indices: ms.Tensor, padding_idx: int, scale_by_freq: bool, sparse: bool
) -> Any:
    # MindSpore reads rows that do not exist as zeros; torch raises.
    if len(weight.shape) != 2 or int(indices.min()) < 0 or int(indices.max()) >= weight.shape[0]:
        return NotImplemented
    return _gather(weight, indices, 0)


@lowering("aten::embedding_dense_backward", dtypes=FLOATS, mixed=True)
def embedding_dense_backward(
    grad: ms.Tensor, indices: ms.Tensor, num_weights: int, padding_idx: int, scale_by_freq: bool
) -> Any:
    if scale_by_freq or padding_idx >= 0:
        return NotImplemented
    return _segment_sum(grad.view(-1, grad.shape[-1]), indices.view(-1), num_weights)


@lowering("aten::mse_loss", dtypes=FLOATS)
def mse_loss(x: ms.Tensor, target: ms.Tensor, reduction: int) -> Any:
    squares = ag.square(ag.sub(x, target))
    if reduction == 0:
        return squares
    if reduction == 1:
        return ag.mean_ext(squares, None, False, None)
    return ag.sum_ext(squares, None, False, None)


@lowering("aten::nll_loss_forward", dtypes=(torch.float32, torch.float64), mixed=True)
def nll_loss_forward(
    x: ms.Tensor, target: ms.Tensor, weight: ms.Tensor | None, reduction: int, ignore_index: int
) -> Any:
    if weight is not None or len(x.shape) != 2 or reduction == 0:
        return NotImplemented
    kept = cast(ag.not_equal(target, ignore_index), torch_dtype(x))
    columns = ag.mul(target, cast(kept, torch.int64))
    if int(columns.min()) < 0 or int(columns.max()) >= x.shape[1]:
        return NotImplemented  # torch's own error
    picked = ops.gather_elements(x, 1, columns.view(-1, 1)).view(-1)
    total = ag.sum_ext(kept, None, False, None)
    loss = ag.neg(ag.sum_ext(ag.mul(picked, kept), None, False, None))
    return (ag.RealDiv()(loss, total) if reduction == 1 else loss), total

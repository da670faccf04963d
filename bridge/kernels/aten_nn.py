"""ATen's activations, softmaxes, layer norm, embedding gradient on the native kernels: as :mod:`.aten`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mindspeed_ms._native.kernels import ACTIVATIONS
from mindspeed_ms.kernels.backend import dtype_code, native, pointer
from mindspeed_ms.kernels.embedding import embedding_grad

Tensor = torch.Tensor

_GELU = {"none": ACTIVATIONS["gelu"], "tanh": ACTIVATIONS["gelu_tanh"]}
_SILU = ACTIVATIONS["silu"]


def _activate(code: int, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    native().activation_forward(
        activation=code,
        x=pointer(x),
        bias=0,
        y=pointer(y),
        rows=1,
        cols=x.numel(),
        dtype=dtype_code(x),
        bias_dtype=0,
    )
    return y


def _activate_backward(code: int, grad: Tensor, x: Tensor) -> Tensor:
    dx = torch.empty_like(x)
    native().activation_backward(
        activation=code,
        dy=pointer(grad),
        x=pointer(x),
        bias=0,
        dx=pointer(dx),
        dbias=0,
        rows=1,
        cols=x.numel(),
        dtype=dtype_code(x),
        bias_dtype=0,
    )
    return dx


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """aten::gelu."""
    return _activate(_GELU[approximate], x)


def gelu_backward(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    """aten::gelu_backward; grad in x's dtype."""
    return _activate_backward(_GELU[approximate], grad, x)


def silu(x: Tensor) -> Tensor:
    """aten::silu."""
    return _activate(_SILU, x)


def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """aten::silu_backward; grad in x's dtype."""
    return _activate_backward(_SILU, grad, x)


def _softmax_call(logarithm: bool, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    cols = x.shape[-1]
    rows = x.numel() // cols if cols else 0
    native().softmax_forward(
        logarithm=logarithm,
        causal=False,
        x=pointer(x),
        mask=0,
        y=pointer(y),
        rows=rows,
        cols=cols,
        heads=1,
        queries=1,
        stride_batch=0,
        stride_head=0,
        stride_query=0,
        scale=1.0,
        dtype=dtype_code(x),
    )
    return y


def _softmax_backward_call(logarithm: bool, grad: Tensor, y: Tensor) -> Tensor:
    dx = torch.empty_like(y)
    cols = y.shape[-1]
    rows = y.numel() // cols if cols else 0
    native().softmax_backward(
        logarithm=logarithm,
        dy=pointer(grad),
        y=pointer(y),
        mask=0,
        dx=pointer(dx),
        rows=rows,
        cols=cols,
        heads=1,
        queries=1,
        stride_batch=0,
        stride_head=0,
        stride_query=0,
        scale=1.0,
        dtype=dtype_code(y),
    )
    return dx


def _softmax(x: Tensor, dim: int = -1, half_to_float: bool = False) -> Tensor:
    """aten::_softmax over the last dimension."""
    _last(x, dim)
    return _softmax_call(False, x)


def _softmax_backward_data(grad: Tensor, output: Tensor, dim: int = -1, dtype: object = None) -> Tensor:
    """aten::_softmax_backward_data over the last dimension."""
    _last(output, dim)
    return _softmax_backward_call(False, grad, output)


def _log_softmax(x: Tensor, dim: int = -1, half_to_float: bool = False) -> Tensor:
    """aten::_log_softmax over the last dimension."""
    _last(x, dim)
    return _softmax_call(True, x)


def _log_softmax_backward_data(grad: Tensor, output: Tensor, dim: int = -1, dtype: object = None) -> Tensor:
    """aten::_log_softmax_backward_data over the last dimension."""
    _last(output, dim)
    return _softmax_backward_call(True, grad, output)


def _last(x: Tensor, dim: int) -> None:
    if x.dim() == 0 or dim % x.dim() != x.dim() - 1:
        raise ValueError(f"native softmax runs over the last dimension, not {dim} of {tuple(x.shape)}")


def _norm_shape(x: Tensor, normalized_shape: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
    cols = math.prod(normalized_shape)
    lead = x.dim() - len(normalized_shape)
    return (x.numel() // cols if cols else 0), cols, (*x.shape[:lead], *(1 for _ in normalized_shape))


def native_layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """aten::native_layer_norm: (y, mean, rstd), statistics in fp32; weight and bias share one dtype."""
    rows, cols, shape = _norm_shape(x, normalized_shape)
    y = torch.empty_like(x)
    mean, rstd = (torch.empty(shape, dtype=torch.float32, device=x.device) for _ in range(2))
    native().norm_forward(
        center=True,
        x=pointer(x),
        residual=0,
        weight=pointer(weight),
        bias=pointer(bias),
        sum=0,
        y=pointer(y),
        mean=pointer(mean),
        rstd=pointer(rstd),
        rows=rows,
        cols=cols,
        eps=eps,
        weight_offset=0.0,
        dtype=dtype_code(x),
        weight_dtype=dtype_code(bias if weight is None else weight),
    )
    return y, mean, rstd


def native_layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """aten::native_layer_norm_backward; mean and rstd in fp32."""
    rows, cols, _ = _norm_shape(x, normalized_shape)
    dx = torch.empty_like(x) if output_mask[0] else None
    parameter = next((p for p in (weight, bias) if p is not None), x)
    like: dict[str, Any] = {"dtype": parameter.dtype, "device": x.device}
    dweight = torch.empty(tuple(normalized_shape), **like) if output_mask[1] and weight is not None else None
    dbias = torch.empty(tuple(normalized_shape), **like) if output_mask[2] and bias is not None else None
    native().norm_backward(
        center=True,
        dy=pointer(grad),
        x=pointer(x),
        weight=pointer(weight),
        dsum=0,
        mean=pointer(mean),
        rstd=pointer(rstd),
        dx=pointer(dx),
        dweight=pointer(dweight),
        dbias=pointer(dbias),
        rows=rows,
        cols=cols,
        weight_offset=0.0,
        dtype=dtype_code(x),
        weight_dtype=dtype_code(parameter),
    )
    return dx, dweight, dbias


def embedding_dense_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    """aten::embedding_dense_backward."""
    return embedding_grad(
        grad, indices, num_weights, padding_idx=padding_idx, scale_grad_by_freq=scale_grad_by_freq
    )

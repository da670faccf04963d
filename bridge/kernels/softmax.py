"""Scaled softmax over the last dimension with a boolean mask and / or a causal limit."""

from __future__ import annotations

import torch
from mindspeed_ms.kernels.backend import dtype_code, implementation, native, pointer
from torch.autograd.function import once_differentiable

#: Score of a masked column, as Megatron's attention_mask_func: a fully masked row becomes uniform, not NaN.
MASKED_SCORE = -10000.0


def scaled_softmax(
    x: torch.Tensor, mask: torch.Tensor | None = None, scale: float = 1.0, *, causal: bool = False
) -> torch.Tensor:
    """softmax(scale * x) over the last dimension, computed in fp32; the result has x's shape and dtype.

    x: (..., queries, keys) in fp32, bf16 or fp16. `mask` (bool, True = left out, for 4-d x broadcastable
    to it) sets scores to MASKED_SCORE (Megatron's ScaledMaskedSoftmax); `causal` gives keys after
    keys - queries + query probability 0 (ScaledUpperTriangMaskedSoftmax). ValueError for a mask that does
    not broadcast.
    """
    if mask is not None:
        mask = _four_dimensional(mask, x)
    if implementation(x) == "composite":
        return softmax_composite(x, mask, scale, causal=causal)
    return _ScaledSoftmax.apply(x, mask, float(scale), causal)


def softmax_composite(
    x: torch.Tensor, mask: torch.Tensor | None = None, scale: float = 1.0, *, causal: bool = False
) -> torch.Tensor:
    """The reference in torch operators, at least in fp32."""
    scores = (x if x.dtype == torch.float64 else x.float()) * scale
    if mask is not None:
        scores = scores.masked_fill(mask, MASKED_SCORE)
    if causal:
        queries, keys = x.shape[-2:]
        later = torch.ones(queries, keys, dtype=torch.bool, device=x.device).triu(keys - queries + 1)
        scores = scores.masked_fill(later, float("-inf"))
    return torch.softmax(scores, dim=-1).to(x.dtype)


def _four_dimensional(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(f"scaled_softmax: the mask must be bool (True = left out), got {mask.dtype}")
    shape = (*x.shape[:-3], *x.shape[-3:])
    if x.dim() > 4:
        raise ValueError(f"scaled_softmax: a masked x has at most 4 dimensions, got {tuple(x.shape)}")
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"scaled_softmax: mask {tuple(mask.shape)} does not broadcast to x {tuple(x.shape)}"
        ) from None


class _ScaledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mask, scale, causal):
        x = x.contiguous()
        y = torch.empty_like(x)
        keys = x.shape[-1]
        rows = x.numel() // keys if keys else 0
        queries = x.shape[-2] if x.dim() > 1 else 1
        heads = x.shape[-3] if x.dim() > 2 else 1
        strides = [0, 0, 0]
        if mask is not None:
            if mask.stride(-1) != 1 and keys > 1:
                mask = mask.contiguous()
            strides = [0] * (4 - mask.dim()) + list(mask.stride())
        native().softmax_forward(
            False,
            causal,
            pointer(x),
            pointer(mask),
            pointer(y),
            rows,
            keys,
            max(heads, 1),
            max(queries, 1),
            *strides[:3],
            scale,
            dtype_code(x),
        )
        ctx.save_for_backward(y)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        dy = dy.contiguous()
        dx = torch.empty_like(y)
        keys = y.shape[-1]
        rows = y.numel() // keys if keys else 0
        native().softmax_backward(
            False, pointer(dy), pointer(y), pointer(dx), rows, keys, ctx.scale, dtype_code(y)
        )
        return dx, None, None, None

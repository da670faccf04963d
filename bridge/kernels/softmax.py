"""Scaled softmax over the last dimension with a boolean mask and / or a causal limit."""

from __future__ import annotations

import torch
from mindspeed_ms.kernels.backend import dtype_code, launch, pointer
from mindspeed_ms.kernels.dispatch import choose, on_mindspore
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
    chosen = choose("scaled_softmax", x)
    if chosen == "mindspore":
        return on_mindspore("scaled_softmax", x, mask, scale, causal=causal)
    if chosen == "composite":
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
    if x.dim() > 4:
        raise ValueError(f"scaled_softmax: a masked x has at most 4 dimensions, got {tuple(x.shape)}")
    try:
        return mask.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"scaled_softmax: mask {tuple(mask.shape)} does not broadcast to x {tuple(x.shape)}"
        ) from None


def _geometry(x: torch.Tensor, mask: torch.Tensor | None) -> tuple[int, ...]:
    """Rows, columns, heads, queries of x, and the mask's strides over (batch, head, query)."""
    keys = x.shape[-1]
    rows = x.numel() // keys if keys else 0
    queries = x.shape[-2] if x.dim() > 1 else 1
    heads = x.shape[-3] if x.dim() > 2 else 1
    strides = [0, 0, 0]
    if mask is not None:
        strides = ([0] * (4 - mask.dim()) + list(mask.stride()))[:3]
    return rows, keys, max(heads, 1), max(queries, 1), *strides


class _ScaledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mask, scale, causal):
        x = x.contiguous()
        y = torch.empty_like(x)
        if mask is not None and mask.stride(-1) != 1 and x.shape[-1] > 1:
            mask = mask.contiguous()
        geometry = _geometry(x, mask)
        launch(
            "softmax_forward",
            x,
            False,
            causal,
            pointer(x),
            pointer(mask),
            pointer(y),
            *geometry,
            scale,
            dtype_code(x),
        )
        ctx.save_for_backward(y, mask)
        ctx.scale, ctx.geometry = scale, geometry
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        y, mask = ctx.saved_tensors
        dy = dy.contiguous()
        dx = torch.empty_like(y)
        launch(
            "softmax_backward",
            y,
            False,
            pointer(dy),
            pointer(y),
            pointer(mask),
            pointer(dx),
            *ctx.geometry,
            ctx.scale,
            dtype_code(y),
        )
        return dx, None, None, None

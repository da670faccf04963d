"""Scaled softmax over the last dimension with a boolean mask and / or a causal limit."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.kernels.backend import dtype_code, native, pointer
from mindspeed_ms.kernels.operator import Gradient, Operator, cast, fake_like

Tensor = torch.Tensor

#: Score of a masked column, as Megatron's attention_mask_func: a fully masked row becomes uniform, not NaN.
MASKED_SCORE = -10000.0


def scaled_softmax(
    x: Tensor, mask: Tensor | None = None, scale: float = 1.0, *, causal: bool = False
) -> Tensor:
    """softmax(scale * x) over the last dimension, computed in fp32; the result has x's shape and dtype.

    x: (..., queries, keys) in fp32, bf16 or fp16. `mask` (bool, True = left out, for 4-d x broadcastable
    to it) sets scores to MASKED_SCORE (Megatron's ScaledMaskedSoftmax); `causal` gives keys after
    keys - queries + query probability 0 (ScaledUpperTriangMaskedSoftmax). ValueError for a mask that does
    not broadcast.
    """
    if mask is not None:
        mask = _four_dimensional(mask, x)
    return _SCALED_SOFTMAX(x, mask, float(scale), causal)


def _four_dimensional(mask: Tensor, x: Tensor) -> Tensor:
    if x.dim() > 4:
        raise ValueError(f"scaled_softmax: a masked x has at most 4 dimensions, got {tuple(x.shape)}")
    try:
        return mask.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"scaled_softmax: mask {tuple(mask.shape)} does not broadcast to x {tuple(x.shape)}"
        ) from None


def _check(x: Tensor, mask: Tensor | None, scale: float, causal: bool) -> None:
    if x.dim() < (2 if causal else 1) or (mask is not None and mask.shape != x.shape):
        of_mask = None if mask is None else tuple(mask.shape)
        raise ValueError(f"scaled_softmax: x {tuple(x.shape)} has no rows, or not those of mask {of_mask}")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"scaled_softmax: the mask must be bool (True = left out), got {mask.dtype}")


# ---- composite


def softmax_composite(
    x: Tensor, mask: Tensor | None = None, scale: float = 1.0, causal: bool = False
) -> Tensor:
    """The reference in torch operators, at least in fp32."""
    scores = _wide(x) * scale
    if mask is not None:
        scores = scores.masked_fill(mask, MASKED_SCORE)
    if causal:
        queries, keys = x.shape[-2:]
        later = torch.ones(queries, keys, dtype=torch.bool, device=x.device).triu(keys - queries + 1)
        scores = scores.masked_fill(later, float("-inf"))
    return torch.softmax(scores, dim=-1).to(x.dtype)


def _composite_backward(dy: Tensor, y: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    wide = _wide(y)
    weighted = wide * dy
    dx = (weighted - wide * weighted.sum(-1, keepdim=True)) * scale
    return (dx if mask is None else dx.masked_fill(mask, 0.0)).to(y.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# ---- csrc


def _csrc(x: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    x = x.contiguous()
    y, mask = torch.empty_like(x), _rows_contiguous(mask)
    native().softmax_forward(
        logarithm=False,
        causal=causal,
        x=pointer(x),
        mask=pointer(mask),
        y=pointer(y),
        **_geometry(x, mask),
        scale=scale,
        dtype=dtype_code(x),
    )
    return y


def _csrc_backward(dy: Tensor, y: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    dy, y, mask = dy.contiguous(), y.contiguous(), _rows_contiguous(mask)
    dx = torch.empty_like(y)
    native().softmax_backward(
        logarithm=False,
        dy=pointer(dy),
        y=pointer(y),
        mask=pointer(mask),
        dx=pointer(dx),
        **_geometry(y, mask),
        scale=scale,
        dtype=dtype_code(y),
    )
    return dx


def _rows_contiguous(mask: Tensor | None) -> Tensor | None:
    return mask if mask is None or mask.stride(-1) == 1 or mask.shape[-1] <= 1 else mask.contiguous()


def _geometry(x: Tensor, mask: Tensor | None) -> dict[str, int]:
    """Rows, columns, heads, queries of x, and the mask's strides over (batch, head, query)."""
    keys = x.shape[-1]
    rows = x.numel() // keys if keys else 0
    queries = x.shape[-2] if x.dim() > 1 else 1
    heads = x.shape[-3] if x.dim() > 2 else 1
    strides = [0, 0, 0]
    if mask is not None:
        strides = ([0] * (4 - mask.dim()) + list(mask.stride()))[:3]
    return {
        "rows": rows,
        "cols": keys,
        "heads": max(heads, 1),
        "queries": max(queries, 1),
        "stride_batch": strides[0],
        "stride_head": strides[1],
        "stride_query": strides[2],
    }


# ---- MindSpore: masked_fill, Softmax, SoftmaxBackward


def _mindspore(x: Any, mask: Any, scale: float, causal: bool) -> Any:
    import mindspore as ms
    from mindspore import mint

    scores = cast(x, ms.float32) * scale
    if mask is not None:
        scores = scores.masked_fill(mask, MASKED_SCORE)
    if causal:
        queries, keys = x.shape[-2:]
        later = mint.triu(mint.ones((queries, keys), dtype=ms.float32), keys - queries + 1).to(ms.bool_)
        scores = scores.masked_fill(later, float("-inf"))
    return mint.nn.functional.softmax(scores, -1).to(x.dtype)


def _mindspore_backward(dy: Any, y: Any, mask: Any, scale: float) -> Any:
    import mindspore as ms
    from mindspore.ops import auto_generate

    dx = auto_generate.softmax_backward_op(cast(dy, ms.float32), cast(y, ms.float32), -1) * scale
    return (dx if mask is None else dx.masked_fill(mask, 0.0)).to(y.dtype)


# ---- operators


_BACKWARD = Operator(
    "scaled_softmax_backward(Tensor dy, Tensor y, Tensor? mask, float scale) -> Tensor",
    decides=("y",),
    fake=lambda dy, y, *_: fake_like(y),
    composite=_composite_backward,
    csrc=_csrc_backward,
    mindspore=_mindspore_backward,
)


def _save(ctx: Any, args: tuple[Any, ...], y: Tensor) -> None:
    ctx.save_for_backward(y, args[1])
    ctx.scale = args[2]


def _gradient(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    return None if dy is None else _BACKWARD(dy, *ctx.saved_tensors, ctx.scale), None, None, None


_SCALED_SOFTMAX = Operator(
    "scaled_softmax(Tensor x, Tensor? mask, float scale, bool causal) -> Tensor",
    decides=("x",),
    fake=lambda x, *_: fake_like(x),
    composite=softmax_composite,
    csrc=_csrc,
    mindspore=_mindspore,
    check=_check,
    gradient=Gradient(_save, _gradient),
)

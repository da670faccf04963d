"""residual + dropout(x + bias), the end of every transformer sub-layer."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.kernels.backend import dtype_code, native, pointer
from mindspeed_ms.kernels.operator import Gradient, Operator, cast, fake_like

Tensor = torch.Tensor


def bias_dropout_add(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    probability: float,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """residual + dropout(x + bias, probability) (Megatron's bias_dropout_add_fused_train / _inference).

    x and residual: (..., hidden), one shape and dtype; bias (hidden,) or None. The mask is drawn by
    torch's bernoulli_ from `generator` (the device's default if None), so it follows RNG trackers and
    recompute.
    """
    _check(x, bias, residual)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"bias_dropout_add: probability must be in [0, 1], got {probability}")
    residual = residual.to(x.dtype)
    mask, scale = None, 1.0
    if training and probability > 0.0:
        mask = torch.empty(x.shape, dtype=torch.bool, device=x.device)
        mask.bernoulli_(1.0 - probability, generator=generator)
        scale = 0.0 if probability == 1.0 else 1.0 / (1.0 - probability)
    return _BIAS_DROPOUT_ADD(x, None if bias is None else bias.to(x.dtype), residual, mask, scale)


def _check(
    x: Tensor, bias: Tensor | None, residual: Tensor, mask: Tensor | None = None, scale: float = 1.0
) -> None:
    for name, tensor in (("residual", residual), ("mask", mask)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(
                f"bias_dropout_add: {name} {tuple(tensor.shape)} differs from x {tuple(x.shape)}"
            )
    if bias is not None and bias.shape != x.shape[-1:]:
        raise ValueError(f"bias_dropout_add: bias {tuple(bias.shape)}, expected {tuple(x.shape[-1:])}")


# ---- composite


def dropout_composite(
    x: Tensor, bias: Tensor | None, residual: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """The reference in torch operators, for a given mask."""
    y = x if bias is None else x + bias
    return residual + (y if mask is None else y * mask * scale)


def _composite_backward(
    dy: Tensor, mask: Tensor | None, scale: float, with_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    dx = None if mask is None else dy * mask * scale
    rows = dy if dx is None else dx
    return dx, rows.reshape(-1, rows.shape[-1]).sum(0) if with_bias else None


# ---- csrc


def _csrc(x: Tensor, bias: Tensor | None, residual: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    x, residual = x.contiguous(), residual.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = torch.empty_like(x)
    rows, cols = _sizes(x)
    native().dropout_add_forward(
        x=pointer(x),
        bias=pointer(bias),
        residual=pointer(residual),
        mask=pointer(mask),
        y=pointer(y),
        rows=rows,
        cols=cols,
        scale=scale,
        dtype=dtype_code(x),
    )
    return y


def _csrc_backward(
    dy: Tensor, mask: Tensor | None, scale: float, with_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    dy = dy.contiguous()
    rows, cols = _sizes(dy)
    dbias = dy.new_empty(cols) if with_bias else None
    if mask is None:
        if dbias is not None:
            code = dtype_code(dy)
            native().sum_first(
                x=pointer(dy),
                y=pointer(dbias),
                rows=rows,
                cols=cols,
                scale=1.0,
                dtype=code,
                out_dtype=code,
            )
        return None, dbias
    dx = torch.empty_like(dy)
    native().dropout_backward(
        dy=pointer(dy),
        mask=pointer(mask),
        dx=pointer(dx),
        dbias=pointer(dbias),
        rows=rows,
        cols=cols,
        scale=scale,
        dtype=dtype_code(dy),
    )
    return dx, dbias


def _sizes(x: Tensor) -> tuple[int, int]:
    cols = x.shape[-1]
    return x.numel() // cols if cols else 0, cols


# ---- MindSpore


def _mindspore(x: Any, bias: Any, residual: Any, mask: Any, scale: float) -> Any:
    y = x if bias is None else x + bias
    return residual + (y if mask is None else y * (cast(mask, y.dtype) * scale))


def _mindspore_backward(dy: Any, mask: Any, scale: float, with_bias: bool) -> tuple[Any, Any]:
    import mindspore as ms

    dx = None if mask is None else dy * (cast(mask, dy.dtype) * scale)
    if not with_bias:
        return dx, None
    rows = (dy if dx is None else dx).reshape((-1, dy.shape[-1]))
    return dx, cast(rows, ms.float32).sum(0).to(dy.dtype)


# ---- operators


def _fake_backward(
    dy: Tensor, mask: Tensor | None, scale: float, with_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    return None if mask is None else fake_like(dy), dy.new_empty(dy.shape[-1]) if with_bias else None


_BACKWARD = Operator(
    "bias_dropout_add_backward(Tensor dy, Tensor? mask, float scale, bool with_bias) -> (Tensor, Tensor)",
    decides=("dy",),
    fake=_fake_backward,
    composite=_composite_backward,
    csrc=_csrc_backward,
    mindspore=_mindspore_backward,
)


def _save(ctx: Any, args: tuple[Any, ...], y: Tensor) -> None:
    ctx.save_for_backward(args[3])
    ctx.scale = args[4]


def _gradient(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    (mask,) = ctx.saved_tensors
    want_x, want_bias, want_residual = ctx.needs_input_grad[:3]
    dx, dbias = dy, None
    if dy is not None and (want_bias or (want_x and mask is not None)):
        dx, dbias = _BACKWARD(dy, mask, ctx.scale, want_bias)
        dx = dy if mask is None else dx  # without a mask there is nothing to compute
    return dx if want_x else None, dbias, dy if want_residual else None, None, None


_BIAS_DROPOUT_ADD = Operator(
    "bias_dropout_add(Tensor x, Tensor? bias, Tensor residual, Tensor? mask, float scale) -> Tensor",
    decides=("x", "bias"),
    fake=lambda x, *_: fake_like(x),
    composite=dropout_composite,
    csrc=_csrc,
    mindspore=_mindspore,
    check=_check,
    gradient=Gradient(_save, _gradient),
)

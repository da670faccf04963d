"""residual + dropout(x + bias), the end of every transformer sub-layer."""

from __future__ import annotations

import torch
from mindspeed_ms.kernels.backend import draw_seed, dtype_code, launch, pointer
from mindspeed_ms.kernels.dispatch import choose, on_mindspore
from torch.autograd.function import once_differentiable


def bias_dropout_add(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    probability: float,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """residual + dropout(x + bias, probability) (Megatron's bias_dropout_add_fused_train / _inference).

    x and residual: (..., hidden), one shape and dtype; bias (hidden,) or None. The mask is drawn by
    torch's bernoulli_ from `generator` (the device's default if None), so it follows RNG trackers and
    recompute; on Ascend by MindSpore, from a seed that this generator draws.
    """
    if residual.shape != x.shape:
        raise ValueError(
            f"bias_dropout_add: residual {tuple(residual.shape)} differs from x {tuple(x.shape)}"
        )
    if bias is not None and bias.shape != x.shape[-1:]:
        raise ValueError(f"bias_dropout_add: bias {tuple(bias.shape)}, expected {tuple(x.shape[-1:])}")
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"bias_dropout_add: probability must be in [0, 1], got {probability}")
    residual = residual.to(x.dtype)
    drops = training and probability > 0.0
    chosen = choose("bias_dropout_add", x, bias)
    if chosen == "mindspore":
        seed = draw_seed(x, generator) if drops else None
        return on_mindspore("bias_dropout_add", x, bias, residual, probability if drops else 0.0, seed=seed)
    mask = None
    if drops:
        mask = torch.empty(x.shape, dtype=torch.bool, device=x.device)
        mask.bernoulli_(1.0 - probability, generator=generator)
    scale = 1.0 if mask is None else (0.0 if probability == 1.0 else 1.0 / (1.0 - probability))
    if chosen == "composite":
        return dropout_composite(x, bias, residual, mask, scale)
    return _DropoutAdd.apply(x, None if bias is None else bias.to(x.dtype), residual, mask, scale)


def dropout_composite(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The reference in torch operators, for a given mask."""
    y = x if bias is None else x + bias
    return residual + (y if mask is None else y * mask * scale)


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, residual, mask, scale):
        x, residual = x.contiguous(), residual.contiguous()
        bias = None if bias is None else bias.contiguous()
        y = torch.empty_like(x)
        cols = x.shape[-1]
        rows = x.numel() // cols if cols else 0
        launch(
            "dropout_add_forward",
            x,
            pointer(x),
            pointer(bias),
            pointer(residual),
            pointer(mask),
            pointer(y),
            rows,
            cols,
            scale,
            dtype_code(x),
        )
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (mask,) = ctx.saved_tensors
        want_bias = ctx.needs_input_grad[1]
        cols = dy.shape[-1]
        rows = dy.numel() // cols if cols else 0
        residual_grad = dy if ctx.needs_input_grad[2] else None
        dy = dy.contiguous()
        dbias = dy.new_empty(cols) if want_bias else None
        if mask is None:
            dx = dy
            if want_bias:
                code = dtype_code(dy)
                launch("sum_first", dy, pointer(dy), pointer(dbias), rows, cols, 1.0, code, code)
        else:
            dx = torch.empty_like(dy)
            launch(
                "dropout_backward",
                dy,
                pointer(dy),
                pointer(mask),
                pointer(dx),
                pointer(dbias),
                rows,
                cols,
                ctx.scale,
                dtype_code(dy),
            )
        return dx, dbias, residual_grad, None, None

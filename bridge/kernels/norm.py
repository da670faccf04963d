"""RMSNorm and LayerNorm over the last dimension, optionally fused with the residual add before them."""

from __future__ import annotations

import torch
from mindspeed_ms.kernels.backend import DTYPE_CODES, dtype_code, launch, pointer
from mindspeed_ms.kernels.dispatch import choose, on_mindspore
from torch.autograd.function import once_differentiable


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    zero_centered: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """x / rms(x) * weight, rms over the last dimension (Zhang & Sennrich 2019; MindSpore ops.rms_norm).

    x: (..., hidden) in fp32, bf16 or fp16, statistics in fp32; weight: (hidden,), any of these dtypes,
    1 + weight is applied when `zero_centered` (Megatron's layernorm_zero_centered_gamma). The result has x's
    dtype and shape. With `residual` (x's shape and dtype) the normalised value is x + residual and the pair
    (result, sum) is returned. ValueError for shapes that do not match.
    """
    return _norm(x, weight, None, eps, zero_centered, residual, center=False)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    zero_centered: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """(x - mean(x)) / std(x) * weight + bias over the last dimension (Ba et al. 2016).

    Arguments and results are those of `rms_norm`; bias: (hidden,), weight's dtype.
    """
    return _norm(x, weight, bias, eps, zero_centered, residual, center=True)


def norm_composite(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    zero_centered: bool,
    residual: torch.Tensor | None,
    center: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The reference in torch operators: any floating dtype, statistics at least in fp32."""
    total = x if residual is None else x + residual
    wide = total if total.dtype == torch.float64 else total.float()
    if center:
        wide = wide - wide.mean(-1, keepdim=True)
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * (weight.to(y.dtype) + 1 if zero_centered else weight.to(y.dtype))
    if bias is not None:
        y = y + bias.to(y.dtype)
    y = y.to(x.dtype)
    return y if residual is None else (y, total)


def _norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    zero_centered: bool,
    residual: torch.Tensor | None,
    center: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    hidden = x.shape[-1] if x.dim() else 0
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != (hidden,):
            raise ValueError(
                f"norm: {name} has shape {tuple(parameter.shape)}, expected ({hidden},) "
                f"as x is {tuple(x.shape)}"
            )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"norm: residual is {tuple(residual.shape)} {residual.dtype}, expected {tuple(x.shape)} {x.dtype}"
        )
    if bias is not None and weight is not None and weight.dtype != bias.dtype:
        bias = bias.to(weight.dtype)
    kernel = "layer_norm" if center else "rms_norm"
    chosen = choose(kernel, x, weight, bias)
    if chosen == "ascend":
        parameters = (weight, bias) if center else (weight,)
        return on_mindspore(kernel, x, *parameters, eps, zero_centered=zero_centered, residual=residual)
    if chosen == "composite":
        return norm_composite(x, weight, bias, eps, zero_centered, residual, center)
    return _Norm.apply(x, weight, bias, eps, zero_centered, residual, center)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, zero_centered, residual, center):
        x = x.contiguous()
        hidden = x.shape[-1]
        rows = x.numel() // hidden if hidden else 0
        y = torch.empty_like(x)
        total = None if residual is None else torch.empty_like(x)
        residual = None if residual is None else residual.contiguous()
        statistics = torch.empty((1 + center, rows), dtype=torch.float32, device=x.device)
        mean = statistics[1] if center else None
        weight_c = None if weight is None else weight.contiguous()
        bias_c = None if bias is None else bias.contiguous()
        offset = 1.0 if zero_centered and weight is not None else 0.0
        launch(
            "norm_forward",
            x,
            center,
            pointer(x),
            pointer(residual),
            pointer(weight_c),
            pointer(bias_c),
            pointer(total),
            pointer(y),
            pointer(mean),
            pointer(statistics[0]),
            rows,
            hidden,
            eps,
            offset,
            dtype_code(x),
            dtype_code(weight if weight is not None else bias),
        )
        ctx.save_for_backward(x if total is None else total, weight_c, statistics)
        ctx.center, ctx.offset = center, offset
        ctx.set_materialize_grads(False)
        ctx.parameter_dtype = next((p.dtype for p in (weight, bias) if p is not None), torch.float32)
        return y if total is None else (y, total)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dsum=None):
        if dy is None:  # only the sum was used
            return (dsum if ctx.needs_input_grad[0] else None, None, None, None, None, dsum, None)
        x, weight, statistics = ctx.saved_tensors
        hidden = x.shape[-1]
        rows = statistics.shape[1]
        want_x = ctx.needs_input_grad[0] or ctx.needs_input_grad[5]
        dy = dy.contiguous()
        dsum = None if dsum is None else dsum.contiguous()
        dx = torch.empty_like(x) if want_x else None
        like = {"dtype": ctx.parameter_dtype, "device": x.device}
        dweight = torch.empty(hidden, **like) if ctx.needs_input_grad[1] else None
        dbias = torch.empty(hidden, **like) if ctx.needs_input_grad[2] else None
        launch(
            "norm_backward",
            x,
            ctx.center,
            pointer(dy),
            pointer(x),
            pointer(weight),
            pointer(dsum),
            pointer(statistics[1] if ctx.center else None),
            pointer(statistics[0]),
            pointer(dx),
            pointer(dweight),
            pointer(dbias),
            rows,
            hidden,
            ctx.offset,
            dtype_code(x),
            DTYPE_CODES[ctx.parameter_dtype],
        )
        return (
            dx if ctx.needs_input_grad[0] else None,
            dweight,
            dbias,
            None,
            None,
            dx if ctx.needs_input_grad[5] else None,
            None,
        )

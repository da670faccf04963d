"""RMSNorm and LayerNorm over the last dimension, optionally fused with the residual add before them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mindspeed_ms.kernels.backend import DTYPE_CODES, dtype_code, native, pointer
from mindspeed_ms.kernels.operator import Gradient, Operator, cast, gradients

Tensor = torch.Tensor
Results = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
"""y; x + residual, where there is one; 1 / std (or 1 / rms) and, of a LayerNorm, mean: fp32 (rows,)."""


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    *,
    zero_centered: bool = False,
    residual: Tensor | None = None,
) -> Tensor | Any:
    """x / rms(x) * weight, rms over the last dimension (Zhang & Sennrich 2019; MindSpore ops.rms_norm).

    x: (..., hidden) in fp32, bf16 or fp16, statistics in fp32; weight: (hidden,), any of these dtypes,
    1 + weight is applied when `zero_centered` (Megatron's layernorm_zero_centered_gamma). The result has x's
    dtype and shape. With `residual` (x's shape and dtype) the normalised value is x + residual and the pair
    (result, sum) is returned. ValueError for shapes that do not match.
    """
    y, total, *_ = _RMS_NORM(x, weight, None, residual, eps, zero_centered)
    return y if residual is None else (y, total)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    zero_centered: bool = False,
    residual: Tensor | None = None,
) -> Tensor | Any:
    """(x - mean(x)) / std(x) * weight + bias over the last dimension (Ba et al. 2016).

    Arguments and results are those of `rms_norm`; bias: (hidden,), weight's dtype.
    """
    if bias is not None and weight is not None and weight.dtype != bias.dtype:
        bias = bias.to(weight.dtype)
    y, total, *_ = _LAYER_NORM(x, weight, bias, residual, eps, zero_centered)
    return y if residual is None else (y, total)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *_: Any) -> None:
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


# ---- composite


def norm_composite(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    zero_centered: bool,
    residual: Tensor | None,
    center: bool,
) -> Tensor | Any:
    """The reference in torch operators: any floating dtype, statistics at least in fp32."""
    y, total, *_ = _composite(center, x, weight, bias, residual, eps, zero_centered)
    return y if residual is None else (y, total)


def _composite(
    center: bool,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    zero_centered: bool,
) -> Results:
    total = x if residual is None else x + residual
    wide = total if total.dtype == torch.float64 else total.float()
    mean = wide.mean(-1, keepdim=True) if center else None
    if mean is not None:
        wide = wide - mean
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = wide * scale
    if weight is not None:
        y = y * (weight.to(y.dtype) + 1 if zero_centered else weight.to(y.dtype))
    if bias is not None:
        y = y + bias.to(y.dtype)
    rstd, mean = (None if s is None else s.detach().float().reshape(-1) for s in (scale, mean))
    assert rstd is not None
    return y.to(x.dtype), None if residual is None else total, rstd, mean


def _composite_backward(
    center: bool,
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rstd: Tensor,
    mean: Tensor | None,
    eps: float,
    zero_centered: bool,
) -> tuple[Tensor | None, ...]:
    def normed(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return _composite(center, x, weight, bias, None, eps, zero_centered)[0]

    dx, dweight, dbias = gradients(normed, (x, weight, bias), (dy,))
    return dx if dtotal is None else dx + dtotal, dweight, dbias


# ---- csrc


def _csrc(
    center: bool,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    zero_centered: bool,
) -> Results:
    x, y, hidden, rows = x.contiguous(), *_like(x)
    total = None if residual is None else torch.empty_like(y)
    residual, weight, bias = (None if t is None else t.contiguous() for t in (residual, weight, bias))
    rstd, mean = _statistics(x, rows, center)
    native().norm_forward(
        center=center,
        x=pointer(x),
        residual=pointer(residual),
        weight=pointer(weight),
        bias=pointer(bias),
        sum=pointer(total),
        y=pointer(y),
        mean=pointer(mean),
        rstd=pointer(rstd),
        rows=rows,
        cols=hidden,
        eps=eps,
        weight_offset=1.0 if zero_centered and weight is not None else 0.0,
        dtype=dtype_code(x),
        weight_dtype=dtype_code(weight if weight is not None else bias),
    )
    return y, total, rstd, mean


def _csrc_backward(
    center: bool,
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rstd: Tensor,
    mean: Tensor | None,
    eps: float,
    zero_centered: bool,
) -> tuple[Tensor | None, ...]:
    x, dx, hidden, rows = x.contiguous(), *_like(x)
    dweight, dbias = (None if t is None else torch.empty_like(t) for t in (weight, bias))
    dy = dy.contiguous()
    weight, dtotal = (None if t is None else t.contiguous() for t in (weight, dtotal))
    parameter = next((p.dtype for p in (weight, bias) if p is not None), torch.float32)
    native().norm_backward(
        center=center,
        dy=pointer(dy),
        x=pointer(x),
        weight=pointer(weight),
        dsum=pointer(dtotal),
        mean=pointer(mean),
        rstd=pointer(rstd),
        dx=pointer(dx),
        dweight=pointer(dweight),
        dbias=pointer(dbias),
        rows=rows,
        cols=hidden,
        weight_offset=1.0 if zero_centered and weight is not None else 0.0,
        dtype=dtype_code(x),
        weight_dtype=DTYPE_CODES[parameter],
    )
    return dx, dweight, dbias


def _like(x: Tensor) -> tuple[Tensor, int, int]:
    """A contiguous result like x, its columns and rows."""
    hidden = x.shape[-1]
    rows = x.numel() // hidden if hidden else 0
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), hidden, rows


def _statistics(x: Tensor, rows: int, center: bool) -> tuple[Tensor, Tensor | None]:
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    return rstd, torch.empty_like(rstd) if center else None


# ---- MindSpore: ops.rms_norm, ops.add_rms_norm, LayerNormExt, RmsNormGrad, LayerNormGradExt


def _mindspore(
    center: bool, x: Any, weight: Any, bias: Any, residual: Any, eps: float, zero_centered: bool
) -> Any:
    from mindspore import ops
    from mindspore.ops import auto_generate

    gamma = _scale(x, weight, zero_centered)
    if center:
        total = x if residual is None else x + residual
        y, mean, rstd = auto_generate.layer_norm_ext_op(total, (x.shape[-1],), gamma, _shift(x, bias), eps)
        return y, None if residual is None else total, rstd.reshape((-1,)), mean.reshape((-1,))
    if residual is None:
        y, rstd = ops.rms_norm(x, gamma, eps)
        return y, None, rstd.reshape((-1,)), None
    y, rstd, total = ops.add_rms_norm(x, residual, gamma, eps)
    return y, total, rstd.reshape((-1,)), None


def _mindspore_backward(
    center: bool,
    dy: Any,
    dtotal: Any,
    x: Any,
    weight: Any,
    bias: Any,
    rstd: Any,
    mean: Any,
    eps: float,
    zero_centered: bool,
) -> Any:
    from mindspore.ops import auto_generate
    from mindspore.ops.auto_generate import gen_ops_prim

    gamma = _scale(x, weight, zero_centered)
    shape = (*x.shape[:-1], 1)
    if center:
        arguments = ((x.shape[-1],), mean.reshape(shape), rstd.reshape(shape), gamma, _shift(x, bias))
        dx, dgamma, dbeta = gen_ops_prim.LayerNormGradExt()(dy, x, *arguments)
    else:
        dx, dgamma = auto_generate.rms_norm_grad_op(dy, x, rstd.reshape(shape), gamma)
        dbeta = None
    dweight = None if weight is None else cast(dgamma, weight.dtype)
    dbias = None if bias is None else cast(dbeta, bias.dtype)
    return dx if dtotal is None else dx + dtotal, dweight, dbias


def _scale(x: Any, weight: Any, zero_centered: bool) -> Any:
    """Of a norm, in x's dtype, as its operators want it."""
    from mindspore import mint

    if weight is None:
        return mint.ones(x.shape[-1:], dtype=x.dtype)
    gamma = cast(weight, x.dtype)
    return gamma + 1 if zero_centered else gamma


def _shift(x: Any, bias: Any) -> Any:
    from mindspore import mint

    return mint.zeros(x.shape[-1:], dtype=x.dtype) if bias is None else cast(bias, x.dtype)


# ---- operators


def _fake(
    center: bool,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    zero_centered: bool,
) -> Results:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x.shape[:-1].numel()
    return y, None if residual is None else torch.empty_like(y), *_statistics(x, rows, center)


def _fake_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    grads = (None if t is None else torch.empty_like(t) for t in (weight, bias))
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), *grads


def _save(ctx: Any, args: tuple[Any, ...], results: Results) -> None:
    x, weight, bias, residual, *ctx.options = args
    _, total, rstd, mean = results
    ctx.save_for_backward(x if residual is None else total, weight, bias, rstd, mean)
    ctx.mark_non_differentiable(*(s for s in (rstd, mean) if s is not None))


def _backward(operator: Operator, ctx: Any, dy: Tensor | None, dtotal: Tensor | None, *_: Any) -> Any:
    x, weight, bias, rstd, mean = ctx.saved_tensors
    want_x, want_weight, want_bias, want_residual = ctx.needs_input_grad[:4]
    if dy is None:  # only the sum was used
        dx, dweight, dbias = dtotal, None, None
    else:
        dx, dweight, dbias = operator(dy, dtotal, x, weight, bias, rstd, mean, *ctx.options)
    wanted = (want_x, dx), (want_weight, dweight), (want_bias, dbias), (want_residual, dx)
    return *(grad if want else None for want, grad in wanted), None, None


def _declared(name: str, center: bool) -> Operator:
    backward = Operator(
        f"{name}_backward(Tensor dy, Tensor? dtotal, Tensor x, Tensor? weight, Tensor? bias, Tensor rstd, "
        "Tensor? mean, float eps, bool zero_centered) -> (Tensor, Tensor, Tensor)",
        decides=("x", "weight", "bias"),
        fake=_fake_backward,
        composite=partial(_composite_backward, center),
        csrc=partial(_csrc_backward, center),
        mindspore=partial(_mindspore_backward, center),
    )
    return Operator(
        f"{name}(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, bool zero_centered) "
        "-> (Tensor y, Tensor total, Tensor rstd, Tensor mean)",
        decides=("x", "weight", "bias"),
        fake=partial(_fake, center),
        composite=partial(_composite, center),
        csrc=partial(_csrc, center),
        mindspore=partial(_mindspore, center),
        check=_check,
        gradient=Gradient(_save, partial(_backward, backward)),
    )


_RMS_NORM = _declared("rms_norm", center=False)
_LAYER_NORM = _declared("layer_norm", center=True)

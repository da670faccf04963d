"""Activations fused with the bias before them, plain and gated (GLU)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from mindspeed_ms.kernels.backend import dtype_code, launch, pointer
from mindspeed_ms.kernels.dispatch import choose, on_mindspore
from torch.autograd.function import once_differentiable

_ROOT_TWO_OVER_PI = math.sqrt(2.0 / math.pi)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.tanh(_ROOT_TWO_OVER_PI * (x + 0.044715 * x * x * x)))


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _squared_relu(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x).square()


#: Name -> (code of csrc/kernels/activation.inl, reference in torch).
ACTIVATIONS: dict[str, tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = {
    "gelu_tanh": (0, _gelu_tanh),
    "gelu": (1, torch.nn.functional.gelu),
    "quick_gelu": (2, _quick_gelu),
    "silu": (3, torch.nn.functional.silu),
    "squared_relu": (4, _squared_relu),
}


def bias_activation(
    x: torch.Tensor, bias: torch.Tensor | None = None, activation: str = "gelu_tanh"
) -> torch.Tensor:
    """act(x + bias): x (..., features) in fp32, bf16 or fp16, computed in fp32; bias (features,) or None.

    `activation` is a key of ACTIVATIONS: "gelu_tanh" (Megatron's bias_gelu), "gelu" (erf), "quick_gelu",
    "silu" or "squared_relu"; ValueError for another name or a bias of the wrong shape.
    """
    _check(activation, x, bias)
    chosen = choose("bias_activation", x, bias)
    if chosen == "ascend":
        return on_mindspore("bias_activation", x, bias, activation)
    if chosen == "composite":
        return ACTIVATIONS[activation][1](x if bias is None else x + bias)
    return _BiasActivation.apply(x, bias, ACTIVATIONS[activation][0])


def bias_glu(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "silu",
    *,
    weights: torch.Tensor | None = None,
    linear_offset: float = 0.0,
    clamp: float | None = None,
) -> torch.Tensor:
    """act(gate) * (linear + linear_offset) * weights with (gate, linear) = halves of x + bias (Shazeer 2020).

    x: (..., 2 * half), gate first, as in Megatron's bias_swiglu / bias_geglu; bias (2 * half,) or None. With
    `clamp` the gate is bounded from above by it and the linear half by +-clamp, after the bias. `weights`
    (one per row, shape (..., 1) or (...,)) are the router probabilities of the MoE-weighted forms; their
    gradient is in their dtype. The result (..., half) has x's dtype, all arithmetic is fp32.
    """
    _check(activation, x, bias)
    if x.shape[-1] % 2:
        raise ValueError(f"bias_glu: the last dimension must hold two halves, x is {tuple(x.shape)}")
    if weights is not None and weights.numel() * x.shape[-1] != x.numel():
        raise ValueError(
            f"bias_glu: weights {tuple(weights.shape)} must hold one value per row of {tuple(x.shape)}"
        )
    chosen = choose("bias_glu", x, bias, weights)
    if chosen == "ascend":
        options = {"weights": weights, "linear_offset": linear_offset, "clamp": clamp}
        return on_mindspore("bias_glu", x, bias, activation, **options)
    if chosen == "composite":
        return glu_composite(x, bias, activation, weights, linear_offset, clamp)
    bound = math.inf if clamp is None else float(clamp)
    return _BiasGlu.apply(x, bias, weights, ACTIVATIONS[activation][0], float(linear_offset), bound)


def glu_composite(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    weights: torch.Tensor | None,
    linear_offset: float,
    clamp: float | None,
) -> torch.Tensor:
    """The reference of `bias_glu` in torch operators."""
    gate, linear = (x if bias is None else x + bias).chunk(2, dim=-1)
    if clamp is not None:
        gate, linear = gate.clamp(max=clamp), linear.clamp(-clamp, clamp)
    y = ACTIVATIONS[activation][1](gate) * (linear + linear_offset)
    if weights is not None:
        y = y * weights.reshape(*y.shape[:-1], 1)
    return y.to(x.dtype)


def _check(activation: str, x: torch.Tensor, bias: torch.Tensor | None) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; use one of {sorted(ACTIVATIONS)}")
    if bias is not None and bias.shape != x.shape[-1:]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, expected {tuple(x.shape[-1:])} as x ends in it"
        )


def _rows(x: torch.Tensor) -> int:
    return x.numel() // x.shape[-1] if x.dim() and x.shape[-1] else 0


class _BiasActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, code):
        x = x.contiguous()
        bias = None if bias is None else bias.contiguous()
        y = torch.empty_like(x)
        cols = x.shape[-1] if x.dim() else 1
        launch(
            "activation_forward",
            x,
            code,
            pointer(x),
            pointer(bias),
            pointer(y),
            x.numel() // max(cols, 1),
            cols,
            dtype_code(x),
            dtype_code(bias),
        )
        ctx.save_for_backward(x, bias)
        ctx.code = code
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, bias = ctx.saved_tensors
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        cols = x.shape[-1] if x.dim() else 1
        dbias = torch.empty(cols, dtype=bias.dtype, device=x.device) if ctx.needs_input_grad[1] else None
        launch(
            "activation_backward",
            x,
            ctx.code,
            pointer(dy),
            pointer(x),
            pointer(bias),
            pointer(dx),
            pointer(dbias),
            x.numel() // max(cols, 1),
            cols,
            dtype_code(x),
            dtype_code(bias),
        )
        return dx, dbias, None


class _BiasGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, weights, code, linear_offset, clamp):
        x = x.contiguous()
        bias = None if bias is None else bias.contiguous()
        wide = None if weights is None else weights.float().contiguous()
        half = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], half)
        launch(
            "glu_forward",
            x,
            code,
            pointer(x),
            pointer(bias),
            pointer(wide),
            pointer(y),
            _rows(x),
            half,
            linear_offset,
            clamp,
            dtype_code(x),
            dtype_code(bias),
        )
        ctx.save_for_backward(x, bias, wide)
        ctx.options = (code, linear_offset, clamp)
        ctx.weights_like = None if weights is None else (weights.shape, weights.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, bias, weights = ctx.saved_tensors
        code, linear_offset, clamp = ctx.options
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        dbias = x.new_empty(x.shape[-1], dtype=bias.dtype) if ctx.needs_input_grad[1] else None
        dweights = x.new_zeros(_rows(x), dtype=torch.float32) if ctx.needs_input_grad[2] else None
        launch(
            "glu_backward",
            x,
            code,
            pointer(dy),
            pointer(x),
            pointer(bias),
            pointer(weights),
            pointer(dx),
            pointer(dbias),
            pointer(dweights),
            _rows(x),
            x.shape[-1] // 2,
            linear_offset,
            clamp,
            dtype_code(x),
            dtype_code(bias),
        )
        if dweights is not None:
            shape, dtype = ctx.weights_like
            dweights = dweights.reshape(shape).to(dtype)
        return dx, dbias, dweights, None, None, None

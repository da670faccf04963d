"""Activations fused with the bias before them, plain and gated (GLU)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from mindspeed_ms._native.kernels import ACTIVATIONS as CODES
from mindspeed_ms.kernels.backend import dtype_code, native, pointer
from mindspeed_ms.kernels.operator import (
    Operator,
    cast,
    composite_gradient,
    fake_gradient,
    fake_like,
    mindspore_gradient,
    of_arguments,
)

Tensor = torch.Tensor

_ROOT_TWO_OVER_PI = math.sqrt(2.0 / math.pi)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.tanh(_ROOT_TWO_OVER_PI * (x + 0.044715 * x * x * x)))


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _squared_relu(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x).square()


_REFERENCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_tanh": _gelu_tanh,
    "gelu": torch.nn.functional.gelu,
    "quick_gelu": _quick_gelu,
    "silu": torch.nn.functional.silu,
    "squared_relu": _squared_relu,
}
#: Name -> (code of the native kernels, reference in torch).
ACTIVATIONS = {name: (CODES[name], reference) for name, reference in _REFERENCES.items()}


def bias_activation(x: Tensor, bias: Tensor | None = None, activation: str = "gelu_tanh") -> Tensor:
    """act(x + bias): x (..., features) in fp32, bf16 or fp16, computed in fp32; bias (features,) or None.

    `activation` is a key of ACTIVATIONS: "gelu_tanh" (Megatron's bias_gelu), "gelu" (erf), "quick_gelu",
    "silu" or "squared_relu"; ValueError for another name or a bias of the wrong shape.
    """
    return _BIAS_ACTIVATION(x, bias, activation)


def bias_glu(
    x: Tensor,
    bias: Tensor | None = None,
    activation: str = "silu",
    *,
    weights: Tensor | None = None,
    linear_offset: float = 0.0,
    clamp: float | None = None,
) -> Tensor:
    """act(gate) * (linear + linear_offset) * weights with (gate, linear) = halves of x + bias (Shazeer 2020).

    x: (..., 2 * half), gate first, as in Megatron's bias_swiglu / bias_geglu; bias (2 * half,) or None. With
    `clamp` the gate is bounded from above by it and the linear half by +-clamp, after the bias. `weights`
    (one per row, shape (..., 1) or (...,)) are the router probabilities of the MoE-weighted forms; their
    gradient is in their dtype. The result (..., half) has x's dtype, all arithmetic is fp32.
    """
    return _BIAS_GLU(x, bias, weights, activation, float(linear_offset), clamp)


def _check_glu(x: Tensor, bias: Tensor | None, weights: Tensor | None, activation: str, *_: Any) -> None:
    _check(x, bias, activation)
    if x.shape[-1] % 2:
        raise ValueError(f"bias_glu: the last dimension must hold two halves, x is {tuple(x.shape)}")
    if weights is not None and weights.numel() * x.shape[-1] != x.numel():
        raise ValueError(
            f"bias_glu: weights {tuple(weights.shape)} must hold one value per row of {tuple(x.shape)}"
        )


def _check(x: Tensor, bias: Tensor | None, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; use one of {sorted(ACTIVATIONS)}")
    if not x.dim():
        raise ValueError("an activation needs rows of features, x has no dimension")
    if bias is not None and bias.shape != x.shape[-1:]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, expected {tuple(x.shape[-1:])} as x ends in it"
        )


# ---- composite


def _activation_composite(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return ACTIVATIONS[activation][1](x if bias is None else x + bias)


def glu_composite(
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    weights: Tensor | None,
    linear_offset: float,
    clamp: float | None,
) -> Tensor:
    """The reference of `bias_glu` in torch operators."""
    return _glu_composite(x, bias, weights, activation, linear_offset, clamp)


def _glu_composite(
    x: Tensor,
    bias: Tensor | None,
    weights: Tensor | None,
    activation: str,
    linear_offset: float,
    clamp: float | None,
) -> Tensor:
    gate, linear = (x if bias is None else x + bias).chunk(2, dim=-1)
    if clamp is not None:
        gate, linear = gate.clamp(max=clamp), linear.clamp(-clamp, clamp)
    y = ACTIVATIONS[activation][1](gate) * (linear + linear_offset)
    if weights is not None:
        y = y * weights.reshape(*y.shape[:-1], 1)
    return y.to(x.dtype)


# ---- csrc


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1] if x.dim() and x.shape[-1] else 0


def _activation_csrc(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    x, bias, cols = _dense(x, bias)
    y = torch.empty_like(x)
    native().activation_forward(
        activation=ACTIVATIONS[activation][0],
        x=pointer(x),
        bias=pointer(bias),
        y=pointer(y),
        rows=x.numel() // max(cols, 1),
        cols=cols,
        dtype=dtype_code(x),
        bias_dtype=dtype_code(bias),
    )
    return y


def _activation_csrc_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor | None]:
    x, bias, cols = _dense(x, bias)
    dy, dx = dy.contiguous(), torch.empty_like(x)
    dbias = None if bias is None else torch.empty_like(bias)
    native().activation_backward(
        activation=ACTIVATIONS[activation][0],
        dy=pointer(dy),
        x=pointer(x),
        bias=pointer(bias),
        dx=pointer(dx),
        dbias=pointer(dbias),
        rows=x.numel() // max(cols, 1),
        cols=cols,
        dtype=dtype_code(x),
        bias_dtype=dtype_code(bias),
    )
    return dx, dbias


def _dense(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
    return x.contiguous(), None if bias is None else bias.contiguous(), x.shape[-1] if x.dim() else 1


def _glu_csrc(
    x: Tensor,
    bias: Tensor | None,
    weights: Tensor | None,
    activation: str,
    linear_offset: float,
    clamp: float | None,
) -> Tensor:
    x, bias, cols = _dense(x, bias)
    weights = None if weights is None else weights.float().contiguous()
    y = x.new_empty(*x.shape[:-1], cols // 2)
    native().glu_forward(
        activation=ACTIVATIONS[activation][0],
        x=pointer(x),
        bias=pointer(bias),
        weights=pointer(weights),
        y=pointer(y),
        rows=_rows(x),
        half=cols // 2,
        linear_offset=linear_offset,
        clamp=math.inf if clamp is None else clamp,
        dtype=dtype_code(x),
        bias_dtype=dtype_code(bias),
    )
    return y


def _glu_csrc_backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    weights: Tensor | None,
    activation: str,
    linear_offset: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, bias, cols = _dense(x, bias)
    wide = None if weights is None else weights.float().contiguous()
    dy, dx = dy.contiguous(), torch.empty_like(x)
    dbias = None if bias is None else torch.empty_like(bias)
    dweights = None if weights is None else x.new_zeros(_rows(x), dtype=torch.float32)
    native().glu_backward(
        activation=ACTIVATIONS[activation][0],
        dy=pointer(dy),
        x=pointer(x),
        bias=pointer(bias),
        weights=pointer(wide),
        dx=pointer(dx),
        dbias=pointer(dbias),
        dweights=pointer(dweights),
        rows=_rows(x),
        half=cols // 2,
        linear_offset=linear_offset,
        clamp=math.inf if clamp is None else clamp,
        dtype=dtype_code(x),
        bias_dtype=dtype_code(bias),
    )
    if weights is not None and dweights is not None:
        dweights = dweights.reshape(weights.shape).to(weights.dtype)
    return dx, dbias, dweights


# ---- MindSpore: GeluExt, SiLU and their gradients, or the products that make up the others; ops.swiglu


def _activation_mindspore(x: Any, bias: Any, activation: str) -> Any:
    return _activate(x if bias is None else x + cast(bias, x.dtype), activation)


def _activation_mindspore_backward(dy: Any, x: Any, bias: Any, activation: str) -> tuple[Any, Any]:
    from mindspore.ops import auto_generate

    if activation in ("gelu", "gelu_tanh", "silu"):
        y = x if bias is None else x + cast(bias, x.dtype)
        if activation == "silu":
            dx = auto_generate.silu_grad_op(dy, y)
        else:
            dx = auto_generate.gelu_grad_ext_op(dy, y, "tanh" if activation == "gelu_tanh" else "none")
        return dx, None if bias is None else _summed(dx, bias)
    return mindspore_gradient(_activation_mindspore, 2)(dy, x, bias, activation)


def _summed(rows: Any, like: Any) -> Any:
    """Sum over all rows, in fp32, in the dtype of `like`."""
    import mindspore as ms

    return rows.reshape((-1, rows.shape[-1])).to(ms.float32).sum(0).to(like.dtype)


def _glu_mindspore(
    x: Any, bias: Any, weights: Any, activation: str, linear_offset: float, clamp: float | None
) -> Any:
    from mindspore import mint, ops

    y = x if bias is None else x + cast(bias, x.dtype)
    if activation == "silu" and linear_offset == 0.0 and clamp is None:
        y = ops.swiglu(y, -1)
    else:
        gate, linear = mint.chunk(y, 2, -1)
        if clamp is not None:
            # Not mint.clamp nor minimum: their gradients make tensors of numbers on the host.
            low, high = (mint.full((), bound, dtype=y.dtype) for bound in (-clamp, clamp))
            gate, linear = (mint.where(mint.gt(part, high), high, part) for part in (gate, linear))
            linear = mint.where(mint.lt(linear, low), low, linear)
        y = _activate(gate, activation) * (linear + linear_offset)
    return y if weights is None else (y * weights.reshape((*y.shape[:-1], 1))).to(x.dtype)


def _glu_mindspore_backward(
    dy: Any, x: Any, bias: Any, weights: Any, activation: str, linear_offset: float, clamp: float | None
) -> tuple[Any, ...]:
    from mindspore.ops import auto_generate

    if activation == "silu" and linear_offset == 0.0 and clamp is None and weights is None:
        dx = auto_generate.swiglu_grad_op(dy, x if bias is None else x + cast(bias, x.dtype), -1)
        return dx, None if bias is None else _summed(dx, bias), None
    options = (activation, linear_offset, clamp)
    return mindspore_gradient(_glu_mindspore, 3)(dy, x, bias, weights, *options)


def _activate(x: Any, activation: str) -> Any:
    from mindspore import mint

    functional = mint.nn.functional
    if activation in ("gelu", "gelu_tanh"):
        return functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
    if activation == "silu":
        return functional.silu(x)
    if activation == "quick_gelu":
        return x * mint.sigmoid(x * 1.702)
    return mint.square(functional.relu(x))


# ---- operators


_BIAS_ACTIVATION = Operator(
    "bias_activation(Tensor x, Tensor? bias, str activation) -> Tensor",
    decides=("x", "bias"),
    fake=lambda x, *_: fake_like(x),
    composite=_activation_composite,
    csrc=_activation_csrc,
    mindspore=_activation_mindspore,
    check=_check,
    gradient=of_arguments(
        Operator(
            "bias_activation_backward(Tensor dy, Tensor x, Tensor? bias, str activation) -> (Tensor, Tensor)",
            decides=("x", "bias"),
            fake=fake_gradient(2),
            composite=composite_gradient(_activation_composite, 2),
            csrc=_activation_csrc_backward,
            mindspore=_activation_mindspore_backward,
        ),
        2,
    ),
)

_GLU = "Tensor x, Tensor? bias, Tensor? weights, str activation, float linear_offset, float? clamp"

_BIAS_GLU = Operator(
    f"bias_glu({_GLU}) -> Tensor",
    decides=("x", "bias", "weights"),
    fake=lambda x, *_: x.new_empty(*x.shape[:-1], x.shape[-1] // 2),
    composite=_glu_composite,
    csrc=_glu_csrc,
    mindspore=_glu_mindspore,
    check=_check_glu,
    gradient=of_arguments(
        Operator(
            f"bias_glu_backward(Tensor dy, {_GLU}) -> (Tensor, Tensor, Tensor)",
            decides=("x", "bias", "weights"),
            fake=fake_gradient(3),
            composite=composite_gradient(_glu_composite, 3),
            csrc=_glu_csrc_backward,
            mindspore=_glu_mindspore_backward,
        ),
        3,
    ),
)

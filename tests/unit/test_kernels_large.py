"""Outputs that are written past the cache (should_stream in csrc/kernels/prelude.cpp): the same results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import relative_l2
from mindspeed_ms import kernels

ROWS = 1031


def swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, linear = x.chunk(2, -1)
    return F.silu(gate) * linear


CASES: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], int]] = {
    "rms_norm": (
        lambda x: kernels.rms_norm(x, eps=1e-5),
        lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5),
        5121,
    ),
    "gelu": (
        lambda x: kernels.bias_activation(x, None, "gelu_tanh"),
        lambda x: F.gelu(x, approximate="tanh"),
        5121,
    ),
    "swiglu": (lambda x: kernels.bias_glu(x, None, "silu"), swiglu, 10246),
    "softmax": (lambda x: kernels.scaled_softmax(x), lambda x: torch.softmax(x, -1), 5121),
    "residual": (
        lambda x: kernels.bias_dropout_add(x, x[0], x, 0.0),
        lambda x: x + (x + x[0]),
        5121,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_large_outputs(name: str) -> None:
    ours, theirs, width = CASES[name]
    torch.manual_seed(0)
    x = torch.randn(ROWS, width)
    mine, reference = x.clone().requires_grad_(), x.double().requires_grad_()
    result, exact = ours(mine), theirs(reference)
    assert result.numel() * 4 > 20 << 20
    weights = torch.cos(torch.arange(result.numel()).float()).view_as(result)
    result.backward(weights)
    exact.backward(weights.double())
    assert relative_l2(result.detach(), exact.detach()) < 3e-7
    assert relative_l2(mine.grad, reference.grad) < 3e-7

"""``transformer_engine.pytorch.ops``: activations (``use_te_activation_func``) on our kernels."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.kernels import bias_activation, bias_glu


class _Activation(torch.nn.Module):
    """``cache_quantized_input`` keeps the input in fp8: refused."""

    def __init__(self, *, cache_quantized_input: bool = False) -> None:
        if cache_quantized_input:
            raise NotImplementedError("no fp8 input is kept: set activation_func_fp8_input_store to False")
        super().__init__()


class SwiGLU(_Activation):
    """``(..., 2 * half)``, gate first -> ``(..., half)``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """silu(gate) * linear."""
        return bias_glu(x)


class GEGLU(_Activation):
    """``(..., 2 * half)``, gate first -> ``(..., half)``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """gelu(gate) * linear, gelu by its tanh form as in Transformer Engine."""
        return bias_glu(x, activation="gelu_tanh")


class GELU(_Activation):
    """Any shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """gelu by its tanh form as in Transformer Engine."""
        return bias_activation(x, activation="gelu_tanh")


class ReLU(_Activation):
    """Any shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """max(x, 0)."""
        return torch.relu(x)


class FusibleOperation:
    """An operation of the fuser: refused when constructed."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        raise NotImplementedError(
            "Transformer Engine's operation fuser is not implemented: drop --use-transformer-engine-op-fuser"
        )


Sequential = ReGLU = SiLU = LayerNorm = RMSNorm = Linear = BasicLinear = FusibleOperation
Bias = AllReduce = ReduceScatter = FusibleOperation

"""``te.pytorch.ops``' activations by themselves (``use_te_activation_func``), on our kernels."""

from __future__ import annotations

import torch


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
        from mindspeed_ms.kernels import bias_glu

        return bias_glu(x)


class GEGLU(_Activation):
    """``(..., 2 * half)``, gate first -> ``(..., half)``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """gelu(gate) * linear, gelu by its tanh form as in Transformer Engine."""
        from mindspeed_ms.kernels import bias_glu

        return bias_glu(x, activation="gelu_tanh")


class GELU(_Activation):
    """Any shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """gelu by its tanh form as in Transformer Engine."""
        from mindspeed_ms.kernels import bias_activation

        return bias_activation(x, activation="gelu_tanh")


class ReLU(_Activation):
    """Any shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """max(x, 0)."""
        return torch.relu(x)

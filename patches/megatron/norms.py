"""The norms of Megatron's local layers: torch's modules, computed by our kernels."""

from __future__ import annotations

import torch
from mindspeed_ms.routes import takes


class LayerNorm(torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` over the last dimension: same parameters, same state."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalised; input ``(..., hidden)`` and the result have one dtype."""
        from mindspeed_ms.kernels import layer_norm

        if not takes(input, self.weight, self.bias):
            return super().forward(input)
        return layer_norm(input, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` over the last dimension: same parameters, same state."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalised; input ``(..., hidden)`` and the result have one dtype."""
        from mindspeed_ms.kernels import rms_norm

        if self.eps is None or not takes(input, self.weight):
            return super().forward(input)
        return rms_norm(input, self.weight, self.eps)


KERNELS = {torch.nn.LayerNorm: LayerNorm, torch.nn.RMSNorm: RMSNorm}


def with_kernel(norm: torch.nn.Module) -> torch.nn.Module:
    """``norm``, now computed by our kernel if it is one of torch's two norms and has one dimension."""
    kind = KERNELS.get(type(norm))
    if isinstance(norm, torch.nn.LayerNorm | torch.nn.RMSNorm) and kind and len(norm.normalized_shape) == 1:
        norm.__class__ = kind
    return norm

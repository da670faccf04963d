"""``mamba_ssm.ops.triton.layernorm_gated``."""

from __future__ import annotations

from typing import Any

import torch
from mindspeed_ms.kernels.state_space import gated_rms_norm


class RMSNorm(torch.nn.Module):
    """RMSNorm over groups of channels with a gate; one parameter, ``weight``."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        """x ``(..., hidden_size)``, gated by z of the same shape if given."""
        return gated_rms_norm(
            x, self.weight, z, eps=self.eps, group=self.group_size, norm_first=self.norm_before_gate
        )
